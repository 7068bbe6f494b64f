//! What concerns the whole cluster: read, and changed field by field.

use posthouse_proto::v1::{self, StringList};
use tonic::Status;

use super::convert::words;
use super::problem::invalid;
use crate::state::{Settings, StateView};

const SETTINGS: &str = "PH-SET-001";

/// Changes `settings` as the request says, leaving the rest.
pub(super) fn merge(mut settings: Settings, from: &v1::Settings) -> Result<Settings, Status> {
    let wrong = |what: &str, why: String, fix: &str| Err(invalid(SETTINGS, format!("{what} is not valid"), why, fix));
    if let Some(list) = &from.dsn_copy_to {
        settings.dsn_copy_to = words(SETTINGS, "dsn_copy_to", list)?;
        if settings.dsn_copy_to.len() > COPIES_MAX {
            return wrong("dsn_copy_to", format!("it names more than {COPIES_MAX}"), "name a mailing list");
        }
    }
    match from.postmaster.as_deref().map(str::trim) {
        None => {}
        Some("") => settings.postmaster = None,
        Some(text) => match text.parse() {
            Ok(mailbox) => settings.postmaster = Some(mailbox),
            Err(error) => return wrong("postmaster", format!("{error}"), "--postmaster admin@corp.example"),
        },
    }
    if let Some(count) = from.relay_addresses_max {
        settings.relay_addresses_max = count;
    }
    Ok(settings)
}

/// Copies of one report; more readers belong on a mailing list.
const COPIES_MAX: usize = 10;

/// The settings as administrators read them.
pub(super) fn settings_out(view: &StateView) -> v1::SettingsReply {
    let settings = &view.state.settings;
    let copies = settings.dsn_copy_to.iter().map(ToString::to_string).collect();
    v1::SettingsReply {
        settings: Some(v1::Settings {
            dsn_copy_to: Some(StringList { values: copies }),
            postmaster: Some(settings.postmaster.as_ref().map(ToString::to_string).unwrap_or_default()),
            relay_addresses_max: Some(settings.relay_addresses_max),
        }),
        revision: view.revision,
    }
}
