//! `settings`: what holds for the whole cluster and belongs to no other object.

use clap::{Args, Subcommand};
use posthouse_proto::v1::{ListRequest, ListSettingsReply, SetSettingsRequest, SettingValue};

use super::Noun;
use crate::client::Client;
use crate::console::Console;
use crate::error::{Exit, Failure, nearest};
use crate::mutation::{Deed, WriteFlags, finish};
use crate::output::Rows;

/// `settings …`.
#[derive(Debug, Subcommand)]
pub(crate) enum SettingsCommand {
    /// Every setting with its value and meaning
    List,
    /// One setting
    Show {
        /// Its key
        key: String,
    },
    /// Change settings, all or none
    Set(SetArgs),
    /// Put settings back to their defaults
    Reset(ResetArgs),
}

/// Flags of `settings set`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl settings set relay_addresses_max=1024 --reason 'ticket 31'
  posthousectl settings set dsn_copy_to=mail-admins@corp.example postmaster=mail-admins@corp.example
  posthousectl settings set postmaster=   # nobody
  posthousectl settings set back_pressure_disk_space=85/95/90/80   # to medium/to high/back to medium/back to low")]
pub(crate) struct SetArgs {
    /// KEY=VALUE
    #[arg(required = true, value_name = "KEY=VALUE", value_parser = key_and_value)]
    values: Vec<(String, String)>,
    #[command(flatten)]
    write: WriteFlags,
}

/// Flags of `settings reset`.
#[derive(Debug, Args)]
pub(crate) struct ResetArgs {
    /// Which
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<String>,
    #[command(flatten)]
    write: WriteFlags,
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.trim().to_owned())),
        _ => Err("must be KEY=VALUE; posthousectl settings list shows the keys".to_owned()),
    }
}

const SETTING: Noun = Noun { name: "setting", missing: "PH-SET-001", list: "settings list" };

/// Runs `settings …`.
///
/// # Errors
/// What went wrong.
pub(crate) async fn run(command: SettingsCommand, console: &Console) -> Result<Exit, Failure> {
    let mut client = console.client().await?;
    match command {
        SettingsCommand::List => list(console, &settings(&mut client).await?),
        SettingsCommand::Show { key } => {
            let found = SETTING.find(settings(&mut client).await?.settings, &key, |setting| &setting.key)?;
            console.out.show("settings-show", &found, "key")?;
            Ok(Exit::Done)
        }
        SettingsCommand::Set(SetArgs { values, write }) => {
            let values = values.into_iter().map(|(key, value)| SettingValue { key, value: Some(value) }).collect();
            put(console, &mut client, values, &write, "settings-set", "set").await
        }
        SettingsCommand::Reset(ResetArgs { keys, write }) => {
            let values = keys.into_iter().map(|key| SettingValue { key, value: None }).collect();
            put(console, &mut client, values, &write, "settings-reset", "reset").await
        }
    }
}

async fn settings(client: &mut Client) -> Result<ListSettingsReply, Failure> {
    client.read(async |mut admin| admin.list_settings(ListRequest::default()).await).await
}

fn list(console: &Console, reply: &ListSettingsReply) -> Result<Exit, Failure> {
    console.out.list("settings-list", reply, "settings", "key", |wide| {
        let mut headings = vec!["SETTING", "VALUE", "MEANING"];
        if wide {
            headings.insert(2, "DEFAULT");
        }
        let mut rows = Rows::new(&headings);
        for setting in &reply.settings {
            let mut row = vec![setting.key.clone(), setting.value.clone(), setting.meaning.clone()];
            if wide {
                row.insert(2, setting.default_value.clone());
            }
            rows.push(row);
        }
        rows
    })?;
    Ok(Exit::Done)
}

async fn put(
    console: &Console,
    client: &mut Client,
    values: Vec<SettingValue>,
    write: &WriteFlags,
    schema: &'static str,
    done: &'static str,
) -> Result<Exit, Failure> {
    let keys: Vec<String> = values.iter().map(|one| one.key.clone()).collect();
    let request = SetSettingsRequest { values, options: Some(write.options(false)) };
    match client.write(async |mut admin| admin.set_settings(request.clone()).await).await {
        Ok(reply) => {
            finish(console, client, write, reply, Deed::new(schema, SETTING.name, &keys.join(", "), done)).await
        }
        Err(failure) if failure.code() == SETTING.missing => {
            let Ok(known) = settings(client).await else { return Err(failure) };
            let known: Vec<&str> = known.settings.iter().map(|setting| setting.key.as_str()).collect();
            let unknown = keys.iter().find(|key| !known.contains(&key.as_str()));
            Err(failure.with_suggestion(unknown.and_then(|key| nearest(key, known.iter().copied()))))
        }
        Err(failure) => Err(failure),
    }
}
