//! `cluster settings`: what concerns the whole cluster.

use clap::Args;
use posthouse_proto::v1::{ListRequest, PutSettingsRequest, Settings, StringList};

use crate::console::Console;
use crate::error::{Exit, Failure};
use crate::mutation::{Deed, WriteFlags, finish};

/// Flags of `cluster settings`; without any it shows them.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl cluster settings
  posthousectl cluster settings --dsn-copy-to mail-admins@corp.example --postmaster mail-admins@corp.example")]
pub(crate) struct SettingsArgs {
    /// Who gets a copy of every report of failure; empty: nobody
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    dsn_copy_to: Option<Vec<String>>,
    /// Who reads what is sent to postmaster; empty: nobody, such letters wait
    #[arg(long, value_name = "ADDRESS")]
    postmaster: Option<String>,
    /// How many addresses one connector may let relay anywhere without --accept-risk
    #[arg(long, value_name = "N")]
    relay_addresses_max: Option<u64>,
    #[command(flatten)]
    write: WriteFlags,
}

/// Shows or changes them.
///
/// # Errors
/// What went wrong.
pub(crate) async fn run(args: SettingsArgs, console: &Console) -> Result<Exit, Failure> {
    let mut client = console.client().await?;
    let SettingsArgs { dsn_copy_to, postmaster, relay_addresses_max, write } = args;
    if dsn_copy_to.is_none() && postmaster.is_none() && relay_addresses_max.is_none() {
        let reply = client.read(async |mut admin| admin.show_settings(ListRequest {}).await).await?;
        console.out.show("cluster-settings", &reply.settings.unwrap_or_default(), "postmaster")?;
        return Ok(Exit::Done);
    }
    // An empty text clears the list.
    let list =
        |values: Vec<String>| StringList { values: values.into_iter().filter(|text| !text.is_empty()).collect() };
    let settings = Settings { dsn_copy_to: dsn_copy_to.map(list), postmaster, relay_addresses_max };
    let request = PutSettingsRequest { settings: Some(settings), options: Some(write.options(false)) };
    let reply = client.write(async |mut admin| admin.put_settings(request.clone()).await).await?;
    finish(console, &mut client, &write, reply, Deed::new("cluster-settings-set", "settings", "", "changed")).await
}
