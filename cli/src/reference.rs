//! What the command line says of itself in other forms: completions, manual pages, `docs/CLI.md`.

use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::Program;

/// The command line with the subcommands' full names, as pages need them.
fn program() -> clap::Command {
    let mut program = Program::command();
    program.build();
    program
}

/// Prints the completions of a shell.
pub(crate) fn completions(shell: clap_complete::Shell) -> anyhow::Result<()> {
    // To memory first: the generator would panic at a closed pipe.
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Program::command(), "shoal", &mut text);
    print(&text)
}

/// Prints the manual page of the program, or writes those of all commands to a directory.
pub(crate) fn man(dir: Option<&Path>) -> anyhow::Result<()> {
    let Some(dir) = dir else { return print(&page(&program())?) };
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut pages = vec![program()];
    while let Some(command) = pages.pop() {
        let path = dir.join(format!("{}.1", command.get_display_name().unwrap_or("shoal")));
        std::fs::write(&path, page(&command)?).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", path.display());
        pages.extend(command.get_subcommands().filter(|sub| sub.get_name() != "help").cloned());
    }
    Ok(())
}

fn page(command: &clap::Command) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut text)?;
    Ok(text)
}

fn print(text: &[u8]) -> anyhow::Result<()> {
    use std::io::Write as _;
    match std::io::stdout().write_all(text) {
        // Whoever reads has read enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "# Command line

Generated from the program itself; a test checks that it is fresh (`SHOAL_WRITE_DOCS=1 cargo test -p shoal reference`
writes it). The settings of daemons, which `bootstrap`, `node`, `gateway` and `config` take as flags, are in
[CONFIGURATION.md](CONFIGURATION.md).
";

    fn describe(command: &clap::Command, text: &mut String) {
        let takes_settings = command.get_arguments().any(|arg| arg.get_id() == "data-listen");
        let name = command.get_bin_name().unwrap_or("shoal").to_owned();
        let mut command = command.clone().term_width(100);
        let help = if takes_settings {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            format!(
                "{about}\n\nUsage: {name} [OPTIONS]\n\nOptions: --config FILE and those of CONFIGURATION.md"
            )
        } else {
            command.render_long_help().to_string()
        };
        let lines: Vec<_> = help.lines().map(str::trim_end).collect();
        text.push_str(&format!("\n## `{name}`\n\n```\n{}\n```\n", lines.join("\n").trim_end()));
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            describe(sub, text);
        }
    }

    #[test]
    fn the_reference_is_fresh() {
        let mut reference = HEAD.to_owned();
        describe(&program(), &mut reference);
        let path = Path::new("../docs/CLI.md");
        if std::env::var_os("SHOAL_WRITE_DOCS").is_some() {
            std::fs::write(path, &reference).unwrap();
        }
        let there = std::fs::read_to_string(path).unwrap_or_default();
        assert!(there == reference, "run SHOAL_WRITE_DOCS=1 cargo test -p shoal reference");
    }

    #[test]
    fn every_command_has_a_page_and_completions() {
        let dir = tempfile::tempdir().unwrap();
        man(Some(dir.path())).unwrap();
        for name in ["shoal", "shoal-install-containerd", "shoal-credential-issue", "shoal-gateway"] {
            let page = std::fs::read_to_string(dir.path().join(format!("{name}.1"))).unwrap();
            assert!(page.contains(".SH NAME"), "{name}: {page}");
        }
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Program::command(), "shoal", &mut text);
            assert!(String::from_utf8(text).unwrap().contains("containerd"), "{shell}");
        }
    }
}
