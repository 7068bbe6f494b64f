//! Who changed what, what it was before, and the difference between two revisions.

use std::collections::{BTreeMap, BTreeSet};

use posthouse_proto::v1;
use serde_json::Value;
use tonic::Status;

use super::problem::{exit, problem, status};
use crate::clock::rfc3339;
use crate::state::{ObjectKey, SETTING_KEYS, Settings, StateView, object_named};

/// Audit records of one answer, unless more are asked for.
const RECORDS_DEFAULT: usize = 100;
/// Objects named with one record.
const OBJECTS_SHOWN: usize = 20;

/// The newest audit records, or those of one object.
pub(super) fn list(view: &StateView, request: &v1::ListAuditRequest) -> v1::ListAuditReply {
    let limit = match request.limit {
        0 => RECORDS_DEFAULT,
        limit => limit as usize,
    };
    let object = request.object.as_str();
    let touches = |revision: u64| {
        let record = view.state.history.get(&revision);
        record.is_some_and(|record| record.replaced.iter().any(|(key, _)| object_named(object, key)))
    };
    let records = view.state.audit.values().rev();
    let records = records.filter(|record| object.is_empty() || touches(record.revision)).take(limit);
    let records = records.map(|record| v1::AuditRecord {
        revision: record.revision,
        time: rfc3339(record.at_ms),
        who: record.who.clone(),
        from: record.from.clone(),
        what: record.what.clone(),
        reason: record.reason.clone(),
        objects: view.state.history.get(&record.revision).map_or_else(Vec::new, |history| {
            history.replaced.iter().take(OBJECTS_SHOWN).map(|(key, _)| name_of(key)).collect()
        }),
    });
    v1::ListAuditReply { records: records.collect() }
}

/// What objects were at one revision and are at another.
pub(super) fn diff(view: &StateView, request: &v1::HistoryDiffRequest) -> Result<v1::HistoryDiffReply, Status> {
    let object = (!request.object.is_empty()).then_some(request.object.as_str());
    let to = if request.to == 0 { view.revision } else { request.to };
    let (first, second) = (request.from.min(to), request.from.max(to));
    let unknown = |oldest: u64| {
        status(problem(
            exit::NOT_FOUND,
            "PH-HIST-001",
            format!("revision {first} is not known any more"),
            format!("what came before revision {oldest} is not kept, or was one change of too many objects"),
            "posthousectl history list",
        ))
    };
    let early = view.state.as_of(first, object).map_err(unknown)?;
    let late = view.state.as_of(second, object).map_err(unknown)?;
    let objects = early.into_iter().filter_map(|(key, before)| {
        let after = late.get(&key).cloned().unwrap_or_else(|| view.state.object_json(&key));
        if request.from <= to { difference(&key, before, after) } else { difference(&key, after, before) }
    });
    Ok(v1::HistoryDiffReply { objects: objects.collect(), from: request.from, to })
}

fn name_of(key: &ObjectKey) -> String {
    match key {
        ObjectKey::Connector(name) => format!("connector/{name}"),
        ObjectKey::AllowlistEntry(name, range) => format!("allowlist/{name}/{range}"),
        ObjectKey::Domain(name) => format!("domain/{name}"),
        ObjectKey::Route(name) => format!("route/{name}"),
        _ => "settings".to_owned(),
    }
}

fn difference(key: &ObjectKey, before: Option<String>, after: Option<String>) -> Option<v1::ObjectDiff> {
    let change = match (&before, &after) {
        _ if before == after => return None,
        (None, _) => "created",
        (_, None) => "deleted",
        _ => "changed",
    };
    let (before, after) = (fields(key, before), fields(key, after));
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let fields = names.into_iter().filter(|name| before.get(*name) != after.get(*name)).map(|name| v1::FieldDiff {
        field: name.clone(),
        before: shown(name, before.get(name)),
        after: shown(name, after.get(name)),
    });
    let fields: Vec<_> = fields.collect();
    // What an older version wrote in other words.
    if change == "changed" && fields.is_empty() {
        return None;
    }
    Some(v1::ObjectDiff { object: name_of(key), change: change.to_owned(), fields })
}

fn fields(key: &ObjectKey, json: Option<String>) -> BTreeMap<String, Value> {
    if *key == ObjectKey::Settings {
        return json.and_then(|json| serde_json::from_str(&json).ok()).as_ref().map(setting_fields).unwrap_or_default();
    }
    match json.map(|json| serde_json::from_str(&json)) {
        Some(Ok(Value::Object(fields))) => fields.into_iter().collect(),
        _ => BTreeMap::new(),
    }
}

/// The settings as they are typed, by their keys, and what has no key beside them.
fn setting_fields(settings: &Settings) -> BTreeMap<String, Value> {
    let keys = SETTING_KEYS.iter().map(|key| (key.name.to_owned(), Value::String(key.value(settings))));
    let authorities = ("client_ca_pem".to_owned(), Value::String(settings.client_ca_pem.clone()));
    keys.chain([authorities]).collect()
}

/// A value in words. What is sealed or hashed says nothing to anybody and stays out of sight all the same.
fn shown(name: &str, value: Option<&Value>) -> String {
    let hidden = ["sealed", "secret", "password"].iter().any(|word| name.contains(word));
    match value {
        None | Some(Value::Null) => String::new(),
        Some(_) if hidden => "<hidden>".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_difference_names_the_fields_that_differ_and_hides_secrets() {
        let key = ObjectKey::Route("r".to_owned());
        let text = |json: &str| Some(json.to_owned());
        let before = r#"{"cost":1,"sealed_password":"a","fqdn":null,"hosts":["x"]}"#;
        let found = difference(&key, text(before), text(r#"{"cost":2,"sealed_password":"b","hosts":["x"]}"#)).unwrap();
        assert_eq!((found.object.as_str(), found.change.as_str()), ("route/r", "changed"));
        let fields: Vec<_> =
            found.fields.iter().map(|f| (f.field.as_str(), f.before.as_str(), f.after.as_str())).collect();
        assert_eq!(fields[0], ("cost", "1", "2"));
        assert_eq!(fields.last().unwrap(), &("sealed_password", "<hidden>", "<hidden>"));
        assert!(!fields.iter().any(|(name, ..)| *name == "hosts"));
        assert!(difference(&key, text(before), text(before)).is_none());
        assert_eq!(difference(&key, None, text(before)).unwrap().change, "created");
        assert_eq!(difference(&key, text(before), None).unwrap().change, "deleted");
    }

    #[test]
    fn settings_differ_by_their_keys() {
        let text = |settings: &Settings| Some(serde_json::to_string(settings).unwrap());
        let mut settings = Settings { client_ca_pem: "pem".to_owned(), ..Settings::default() };
        for (key, value) in [("postmaster", "admin@corp.example"), ("back_pressure_memory", "4/6/5/3")] {
            SETTING_KEYS.iter().find(|one| one.name == key).unwrap().set(&mut settings, value).unwrap();
        }
        // What an older version kept has fewer fields.
        let before = Some(r#"{"relay_addresses_max":4096}"#.to_owned());
        assert!(difference(&ObjectKey::Settings, before.clone(), text(&Settings::default())).is_none());
        let found = difference(&ObjectKey::Settings, before, text(&settings)).unwrap();
        let fields: Vec<_> =
            found.fields.iter().map(|f| (f.field.as_str(), f.before.as_str(), f.after.as_str())).collect();
        assert_eq!(
            fields,
            [
                ("back_pressure_memory", "72/75/73/71", "4/6/5/3"),
                ("client_ca_pem", "", "pem"),
                ("postmaster", "", "admin@corp.example"),
            ]
        );
    }
}
