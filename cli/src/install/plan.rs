//! What is to be written, worked out before anything is: files as they are, as they were before the first
//! installation, and as they shall be.
//!
//! Each file that is changed has a backup beside it, `NAME.before-shoal`. The state file says which files were written,
//! and with what; it is written first, so that an installation that was broken off can be taken back.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use shoal_types::{Algorithm, DigestHasher};

use super::json;

/// What a backup's name ends with.
const BACKUP: &str = ".before-shoal";
/// The first and last line of what is put into a file that others write too.
const BLOCK_BEGIN: &str = "# >>> shoal install";
const BLOCK_END: &str = "# <<< shoal install";

/// How what was put into a file is taken out again when others have changed the file since.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Undo {
    /// The whole file is ours: a changed one is left alone.
    Whole,
    /// Everything between the two marker lines.
    Block,
    /// A text in a TOML file, by its path: its former value, or its absence.
    Toml {
        /// Keys from the root.
        path: Vec<String>,
        /// What it was.
        before: Option<String>,
        /// What was written.
        after: String,
    },
    /// One text in an array of a JSON object.
    Json {
        /// The array's key.
        key: String,
        /// The text.
        value: String,
    },
}

#[derive(Default, Serialize, Deserialize)]
struct State {
    files: Vec<Written>,
    directories: Vec<PathBuf>,
}

#[derive(Serialize, Deserialize)]
struct Written {
    path: PathBuf,
    backup: Option<PathBuf>,
    digest: String,
    undo: Undo,
}

/// A file on its way.
struct File {
    /// As it is on disk.
    disk: Option<String>,
    /// As it was before anything was installed.
    former: Option<String>,
    /// As it shall be.
    wanted: Option<String>,
    /// How that is taken back; none for one that was only taken back.
    undo: Option<Undo>,
}

/// What is to be done.
pub(super) struct Plan {
    state_path: PathBuf,
    state: Option<State>,
    files: BTreeMap<PathBuf, File>,
    notes: Vec<String>,
}

impl Plan {
    /// Begins with everything taken back that was installed before.
    pub(super) fn open(state_path: &Path) -> anyhow::Result<Self> {
        let state = match read(state_path)? {
            None => None,
            Some(text) => Some(serde_json::from_str::<State>(&text).with_context(|| {
                format!("{} is not understood: it is of another version, or damaged", state_path.display())
            })?),
        };
        let mut plan =
            Self { state_path: state_path.to_owned(), state: None, files: BTreeMap::new(), notes: vec![] };
        for written in state.iter().flat_map(|state| &state.files) {
            plan.take_back(written)?;
        }
        plan.state = state;
        Ok(plan)
    }

    fn take_back(&mut self, written: &Written) -> anyhow::Result<()> {
        let disk = read(&written.path)?;
        let former = match &written.backup {
            Some(backup) => {
                let lost =
                    || format!("the backup {} is gone: put it back, or edit by hand", backup.display());
                Some(read(backup)?.with_context(lost)?)
            }
            None => None,
        };
        let unchanged = |text: &String| digest(text) == written.digest;
        let wanted = match &disk {
            None => {
                self.notes.push(format!("{} was removed meanwhile, and stays so", written.path.display()));
                None
            }
            Some(text) if unchanged(text) || Some(text) == former.as_ref() => former.clone(),
            Some(text) => {
                let file = written.path.display();
                self.notes
                    .push(format!("{file} was changed meanwhile: only what was installed is taken out"));
                if written.undo == Undo::Whole {
                    self.notes.push(format!("{file} is kept, for it was changed: remove it by hand"));
                }
                undo(text, &written.undo).with_context(|| format!("{file} cannot be reverted"))?
            }
        };
        self.files.insert(written.path.clone(), File { disk, former, wanted, undo: None });
        Ok(())
    }

    /// Whether nothing is installed.
    pub(super) fn is_new(&self) -> bool {
        self.state.is_none()
    }

    /// A file as it would be without what was installed before.
    pub(super) fn text(&mut self, path: &Path) -> anyhow::Result<Option<String>> {
        Ok(self.file(path)?.wanted.clone())
    }

    fn file(&mut self, path: &Path) -> anyhow::Result<&mut File> {
        if !self.files.contains_key(path) {
            let disk = read(path)?;
            let file = File { former: disk.clone(), wanted: disk.clone(), disk, undo: None };
            self.files.insert(path.to_owned(), file);
        }
        self.files.get_mut(path).context("a file that was just read")
    }

    /// What a file shall be.
    pub(super) fn write(&mut self, path: &Path, text: String, undo: Undo) -> anyhow::Result<()> {
        let file = self.file(path)?;
        if file.undo.is_none() {
            // As it is without anything installed: the backup may be older than what others wrote since.
            file.former = file.wanted.clone();
        }
        file.wanted = Some(text);
        file.undo = Some(undo);
        Ok(())
    }

    /// Something to say at the end.
    pub(super) fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    /// Whether a file would change.
    pub(super) fn changes(&self, path: &Path) -> bool {
        self.files.get(path).is_some_and(|file| file.disk != file.wanted)
    }

    /// Shows what changes and, unless `dry_run`, does it.
    pub(super) fn finish(self, dry_run: bool) -> anyhow::Result<()> {
        let changes = self.files.iter().filter(|(_, file)| file.disk != file.wanted);
        let mut any = false;
        for (path, file) in changes {
            any = true;
            show(path, file.disk.as_deref(), file.wanted.as_deref(), dry_run);
        }
        if !dry_run {
            self.commit()?;
        }
        if !any {
            println!("nothing to change");
        }
        for note in &self.notes {
            println!("{note}");
        }
        Ok(())
    }

    fn commit(&self) -> anyhow::Result<()> {
        let installed: Vec<_> =
            self.files.iter().filter_map(|(path, file)| Some((path, file, file.undo.clone()?))).collect();
        let mut directories = self.state.as_ref().map(|state| state.directories.clone()).unwrap_or_default();
        let mut written = Vec::new();
        for (path, file, undo) in &installed {
            for directory in missing_above(path) {
                if !directories.contains(&directory) {
                    directories.push(directory);
                }
            }
            let backup = match &file.former {
                Some(former) => {
                    let backup = backup_path(path);
                    write_atomically(&backup, former, Some(path))?;
                    Some(backup)
                }
                None => None,
            };
            let digest = digest(file.wanted.as_deref().unwrap_or_default());
            written.push(Written { path: (*path).clone(), backup, digest, undo: undo.clone() });
        }
        if !written.is_empty() {
            let state = State { files: written, directories: directories.clone() };
            write_atomically(&self.state_path, &serde_json::to_string_pretty(&state)?, None)?;
        }
        for (path, file) in self.files.iter().filter(|(_, file)| file.disk != file.wanted) {
            match &file.wanted {
                Some(text) => write_atomically(path, text, None)?,
                None => {
                    fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
                }
            }
        }
        self.forget(&installed.iter().map(|(path, ..)| path.as_path()).collect::<Vec<_>>(), &directories)
    }

    /// Removes the backups of files in which nothing is installed any more, and directories that were made and hold
    /// nothing; with the last file the state.
    fn forget(&self, installed: &[&Path], directories: &[PathBuf]) -> anyhow::Result<()> {
        let Some(state) = &self.state else { return Ok(()) };
        let gone = state.files.iter().filter(|file| !installed.contains(&file.path.as_path()));
        for backup in gone.filter_map(|file| file.backup.as_ref()) {
            fs::remove_file(backup).with_context(|| format!("cannot remove {}", backup.display()))?;
        }
        if !installed.is_empty() {
            return Ok(());
        }
        for directory in directories.iter().rev() {
            // One that others have used since stays.
            let _ = fs::remove_dir(directory);
        }
        let path = &self.state_path;
        fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))
    }
}

/// The text with `block` between markers before the first line for which `before` holds, or at the end.
pub(super) fn with_block(text: &str, block: &str, before: impl Fn(&str) -> bool) -> String {
    let mut at = text.len();
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        if before(line.trim_start()) {
            at = offset;
            break;
        }
        offset += line.len();
    }
    let (head, tail) = text.split_at_checked(at).unwrap_or((text, ""));
    let gap = if head.is_empty() || head.ends_with('\n') { "" } else { "\n" };
    format!("{head}{gap}{BLOCK_BEGIN}\n{block}{BLOCK_END}\n{tail}")
}

/// The text without the block; `None` when it has none.
fn without_block(text: &str) -> Option<String> {
    let begin = text.find(BLOCK_BEGIN)?;
    let end = begin + text.get(begin..)?.find(BLOCK_END)?;
    let rest = text.get(end..)?;
    let after = rest.find('\n').map_or("", |line| rest.get(line + 1..).unwrap_or_default());
    Some(format!("{}{after}", text.get(..begin)?))
}

fn undo(text: &str, undo: &Undo) -> anyhow::Result<Option<String>> {
    let left = match undo {
        Undo::Whole => return Ok(Some(text.to_owned())),
        Undo::Block => without_block(text).context("its marker lines are gone")?,
        Undo::Toml { path, before, after } => undo_toml(text, path, before.as_deref(), after)?,
        Undo::Json { key, value } => json::remove(text, key, value)?,
    };
    // Nobody else has anything in it.
    Ok((!left.trim().is_empty()).then_some(left))
}

fn undo_toml(text: &str, path: &[String], before: Option<&str>, after: &str) -> anyhow::Result<String> {
    let mut document: toml_edit::DocumentMut = text.parse().context("it is not valid TOML")?;
    let (last, tables) = path.split_last().context("a path without keys")?;
    let mut table: &mut dyn toml_edit::TableLike = document.as_table_mut();
    for key in tables {
        let next = table.get_mut(key).and_then(toml_edit::Item::as_table_like_mut);
        // What was installed is gone with its table.
        let Some(next) = next else { return Ok(text.to_owned()) };
        table = next;
    }
    // Another value is not ours.
    if table.get(last).and_then(toml_edit::Item::as_str) == Some(after) {
        match before {
            Some(before) => set_text(table, last, before),
            None => drop(table.remove(last)),
        }
    }
    Ok(document.to_string())
}

/// Sets a text in a TOML table; the space and the comment around a former one stay.
pub(super) fn set_text(table: &mut dyn toml_edit::TableLike, key: &str, text: &str) {
    match table.get_mut(key).and_then(toml_edit::Item::as_value_mut) {
        Some(value) => {
            let mut fresh = toml_edit::Value::from(text);
            fresh.decor_mut().clone_from(value.decor());
            *value = fresh;
        }
        None => drop(table.insert(key, toml_edit::value(text))),
    }
}

fn backup_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(BACKUP);
    name.into()
}

/// Directories above a file that are not there, the outermost first.
fn missing_above(path: &Path) -> Vec<PathBuf> {
    let mut missing: Vec<PathBuf> =
        path.ancestors().skip(1).take_while(|above| !above.exists()).map(Path::to_owned).collect();
    missing.reverse();
    missing
}

fn digest(text: &str) -> String {
    let mut hasher = DigestHasher::new(Algorithm::Sha256);
    hasher.update(text.as_bytes());
    hasher.finish().to_string()
}

fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8(bytes);
            Ok(Some(text.with_context(|| format!("{} is not UTF-8 text", path.display()))?))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Replaces a file in one step. It keeps the mode and owner that it, or `like`, has; a link is followed.
fn write_atomically(path: &Path, text: &str, like: Option<&Path>) -> anyhow::Result<()> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let context = || format!("cannot write {}", path.display());
    let directory = path.parent().with_context(context)?;
    fs::create_dir_all(directory).with_context(context)?;
    let name = path.file_name().with_context(context)?.to_string_lossy().into_owned();
    let fresh = directory.join(format!(".{name}.shoal-new"));
    let model = fs::metadata(like.unwrap_or(&path)).ok();
    let write = || -> std::io::Result<()> {
        let mode = model.as_ref().map_or(0o644, |model| model.mode() & 0o7777);
        let options = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).to_owned();
        let mut file = options.open(&fresh)?;
        file.write_all(text.as_bytes())?;
        if let Some(model) = &model {
            file.set_permissions(model.permissions())?;
            std::os::unix::fs::fchown(&file, Some(model.uid()), Some(model.gid()))?;
        }
        file.sync_all()?;
        fs::rename(&fresh, &path)
    };
    write().with_context(context).inspect_err(|_| drop(fs::remove_file(&fresh)))
}

/// Prints the lines that go and come.
fn show(path: &Path, old: Option<&str>, new: Option<&str>, dry_run: bool) {
    let verb = match (old, new, dry_run) {
        (None, _, true) => "would create",
        (None, _, false) => "created",
        (_, None, true) => "would remove",
        (_, None, false) => "removed",
        (_, _, true) => "would change",
        (_, _, false) => "changed",
    };
    println!("{verb} {}", path.display());
    if !dry_run {
        return;
    }
    let lines =
        |text: Option<&str>| -> Vec<String> { text.unwrap_or_default().lines().map(str::to_owned).collect() };
    let (old, new) = (lines(old), lines(new));
    let head = old.iter().zip(&new).take_while(|(old, new)| old == new).count();
    let tails = old.iter().skip(head).rev().zip(new.iter().skip(head).rev());
    let tail = tails.take_while(|(old, new)| old == new).count();
    let middle = |lines: &[String]| lines.get(head..lines.len() - tail).unwrap_or_default().to_vec();
    middle(&old).iter().for_each(|line| println!("  - {line}"));
    middle(&new).iter().for_each(|line| println!("  + {line}"));
}

/// Fails when a path is something that cannot be edited.
pub(super) fn refuse_directory(path: &Path) -> anyhow::Result<()> {
    if path.is_dir() {
        bail!("{} is a directory, not a file", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_goes_in_and_comes_out() {
        let text = "server = \"https://x\"\n\n[host.\"https://y\"]\n  a = 1";
        let with = with_block(text, "b = 2\n", |line| line.starts_with("[host"));
        assert!(with.starts_with("server = \"https://x\"\n\n# >>>"), "{with}");
        assert_eq!(without_block(&with).unwrap(), text);
        let later = format!("# mine\n{with}\n# also mine\n");
        assert_eq!(without_block(&later).unwrap(), format!("# mine\n{text}\n# also mine\n"));
        assert_eq!(without_block(&with_block("", "b\n", |_| false)).unwrap(), "");
        assert!(without_block(text).is_none());
    }

    /// Installs "b" into a file by a block; the second value is the directory it all is in.
    fn installed(former: Option<&str>) -> (PathBuf, PathBuf, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let (state, file) = (dir.path().join("state/x.json"), dir.path().join("etc/deep/x.conf"));
        if let Some(former) = former {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, former).unwrap();
        }
        install(&state, &file, "b\n");
        (state, file, dir)
    }

    fn install(state: &Path, file: &Path, block: &str) {
        let mut plan = Plan::open(state).unwrap();
        let text = plan.text(file).unwrap().unwrap_or_default();
        plan.write(file, with_block(&text, block, |_| false), Undo::Block).unwrap();
        plan.finish(false).unwrap();
    }

    fn revert(state: &Path) {
        Plan::open(state).unwrap().finish(false).unwrap();
    }

    #[test]
    fn what_was_there_comes_back_byte_for_byte() {
        let (state, file, _dir) = installed(Some("a\r\n\tno newline at the end"));
        install(&state, &file, "another\n");
        install(&state, &file, "another\n");
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(text.matches(BLOCK_BEGIN).count(), 1, "{text}");
        assert!(text.contains("another") && !text.contains("\nb\n"), "{text}");
        revert(&state);
        assert_eq!(fs::read_to_string(&file).unwrap(), "a\r\n\tno newline at the end");
        assert!(!state.exists() && !backup_path(&file).exists());
    }

    #[test]
    fn what_was_not_there_is_gone_with_its_directories() {
        let (state, file, dir) = installed(None);
        assert!(file.exists());
        revert(&state);
        assert!(!dir.path().join("etc").exists());
    }

    #[test]
    fn later_changes_by_others_stay() {
        for former in [None, Some("a\n")] {
            let (state, file, _dir) = installed(former);
            let text = fs::read_to_string(&file).unwrap();
            fs::write(&file, format!("{text}c\n")).unwrap();
            // Installing again must not make the older backup the truth either.
            install(&state, &file, "d\n");
            revert(&state);
            assert_eq!(fs::read_to_string(&file).unwrap(), format!("{}c\n", former.unwrap_or_default()));
        }
    }

    #[test]
    fn a_dry_run_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x");
        let mut plan = Plan::open(&dir.path().join("state.json")).unwrap();
        plan.write(&file, "text".into(), Undo::Whole).unwrap();
        plan.finish(true).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn mode_and_links_are_kept() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::write(&real, "a\n").unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        install(&dir.path().join("state.json"), &link, "b\n");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(fs::read_to_string(&real).unwrap().contains("b\n"));
        for file in [&real, &backup_path(&link)] {
            assert_eq!(fs::metadata(file).unwrap().mode() & 0o777, 0o600, "{}", file.display());
        }
    }
}
