//! The flags of a daemon: one for every setting, from the settings' own table.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Arg, ArgAction, ArgMatches};
use shoal_daemon::config::{Config, KEYS, KeyKind};

/// The flags given.
pub(crate) struct DaemonFlags {
    config: Option<PathBuf>,
    values: BTreeMap<&'static str, Vec<String>>,
}

impl DaemonFlags {
    /// The configuration from file, environment and these flags.
    pub(crate) fn load(&self) -> anyhow::Result<Config> {
        self.load_with(self.file().as_deref())
    }

    /// The file named by flag or variable.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        self.config.clone().or_else(|| std::env::var_os("SHOAL_CONFIG").map(PathBuf::from))
    }

    /// The configuration from this file, environment and these flags.
    pub(crate) fn load_with(&self, file: Option<&Path>) -> anyhow::Result<Config> {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Config::load(file, variables, &self.values).context("cannot start")
    }
}

impl clap::FromArgMatches for DaemonFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut values = BTreeMap::new();
        for key in KEYS {
            if key.kind == KeyKind::Switch {
                if matches.get_flag(key.name) {
                    values.insert(key.name, vec!["true".to_owned()]);
                }
            } else if let Some(given) = matches.get_many::<String>(key.name) {
                values.insert(key.name, given.cloned().collect());
            }
        }
        Ok(Self { config: matches.get_one("config").cloned(), values })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = <Self as clap::FromArgMatches>::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for DaemonFlags {
    fn augment_args(command: clap::Command) -> clap::Command {
        let file =
            Arg::new("config").long("config").value_name("FILE").value_parser(clap::value_parser!(PathBuf));
        // The last of a repeated flag wins, so that scripts can add to a command line.
        let command = command.args_override_self(true);
        let command = command.arg(file.help("TOML file with any of these settings [variable: SHOAL_CONFIG]"));
        command.args(KEYS.iter().map(|key| {
            let arg = Arg::new(key.name).long(key.name).help(format!(
                "{} [variable: {}]",
                key.help(),
                key.variable()
            ));
            match key.kind {
                KeyKind::Switch => arg.action(ArgAction::SetTrue),
                KeyKind::List => arg.action(ArgAction::Append).value_name(key.value_name),
                KeyKind::Text | KeyKind::Number | KeyKind::Share => {
                    arg.action(ArgAction::Set).value_name(key.value_name)
                }
            }
        }))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}
