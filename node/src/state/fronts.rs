//! Changes of fronts and of how nodes share connections: weights, draining, and signing keys that are rotated in
//! steps which each leave every header believed: publish, sign, retire.

use super::apply::{check_revision, put};
use super::objects::MEMBER_WEIGHT_MAX;
use super::refusals::{invalid, not_found};
use super::{Change, ClusterState, Command, FrontMember, Refusal};

/// The key in use, the next one, and one that a rotation was given up over.
const KEYS_MAX: usize = 3;

/// Gives a node its weight. Answers the node's id.
pub(super) fn set_member_weight(
    state: &mut ClusterState,
    command: &Command,
    revision: u64,
    name: &str,
    weight: u32,
) -> Result<u64, Refusal> {
    let Some(found) = state.members.values().find(|found| found.value.name == name) else {
        return Err(not_found("PH-NODE-001", "node", name, "node list"));
    };
    check_revision(Some(found), command, "node", name)?;
    if !(1..=MEMBER_WEIGHT_MAX).contains(&weight) {
        return Err(invalid(
            "PH-NODE-010",
            "the weight is not valid",
            format!("{weight} is not between 1 and {MEMBER_WEIGHT_MAX}; a node that takes nothing is drained"),
            "posthousectl node set NODE --weight 1, or: posthousectl node drain NODE",
        ));
    }
    let mut member = found.value.clone();
    member.weight = weight;
    let id = member.id;
    put(&mut state.members, revision, id, member);
    Ok(id)
}

/// Applies a change of one front. Nothing: it was so already.
pub(super) fn change(state: &mut ClusterState, command: &Command, revision: u64) -> Result<Option<String>, Refusal> {
    let (Change::SetFrontState { name, .. }
    | Change::AddFrontKey { name, .. }
    | Change::SignWithFrontKey { name, .. }
    | Change::RetireFrontKeys { name, .. }) = &command.change
    else {
        return Ok(None);
    };
    let Some(found) = state.fronts.get(name) else {
        return Err(not_found("PH-FRONT-001", "front", name, "front list"));
    };
    check_revision(Some(found), command, "front", name)?;
    let mut front = found.value.clone();
    let what = turn(&mut front, &command.change)?;
    if front == found.value {
        return Ok(None);
    }
    put(&mut state.fronts, revision, name.clone(), front);
    Ok(Some(what))
}

fn turn(front: &mut FrontMember, change: &Change) -> Result<String, Refusal> {
    let name = front.name.clone();
    match change {
        Change::SetFrontState { state, .. } => {
            front.state = *state;
            Ok(format!("front {name} is {}", state.as_str()))
        }
        Change::AddFrontKey { key, .. } => {
            if front.keys.iter().any(|known| known.id == key.id) {
                return Ok(String::new());
            }
            if front.keys.len() >= KEYS_MAX {
                return Err(invalid(
                    "PH-FRONT-008",
                    format!("front \"{name}\" has {KEYS_MAX} keys already"),
                    "earlier rotations were not finished",
                    "finish one: posthousectl front rotate-key NAME, while the front is connected",
                ));
            }
            if front.signs_with.is_empty() {
                front.signs_with = front.signing_key_id().to_owned();
            }
            front.keys.push(key.clone());
            Ok(format!("published key {} of front {name}", key.id))
        }
        Change::SignWithFrontKey { id, .. } => {
            must_have(front, id)?;
            front.signs_with.clone_from(id);
            Ok(format!("front {name} signs with key {id}"))
        }
        Change::RetireFrontKeys { keep, .. } => {
            must_have(front, keep)?;
            if front.signing_key_id() != keep {
                return Err(invalid(
                    "PH-FRONT-009",
                    format!("front \"{name}\" does not sign with key {keep}"),
                    format!(
                        "it signs with {}: retiring that would have nodes refuse its headers",
                        front.signing_key_id()
                    ),
                    "posthousectl front rotate-key NAME does the steps in their order",
                ));
            }
            front.keys.retain(|key| key.id == *keep);
            Ok(format!("retired the old keys of front {name}"))
        }
        _ => Ok(String::new()),
    }
}

fn must_have(front: &FrontMember, id: &str) -> Result<(), Refusal> {
    if front.keys.iter().any(|key| key.id == id) {
        return Ok(());
    }
    Err(not_found("PH-FRONT-010", "signing key", id, "front show NAME"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::state::{FrontSigningKey, MemberState, SealedSecret};

    fn key(id: &str) -> FrontSigningKey {
        FrontSigningKey { id: id.to_owned(), sealed_key: SealedSecret("sealed".to_owned()) }
    }

    fn front() -> FrontMember {
        FrontMember {
            name: "f1".to_owned(),
            source_addresses: vec![],
            keys: vec![key("old")],
            http_address: String::new(),
            joined_at_ms: 0,
            signs_with: String::new(),
            state: MemberState::Active,
        }
    }

    fn add(id: &str) -> Change {
        Change::AddFrontKey { name: "f1".to_owned(), key: key(id) }
    }

    #[test]
    fn a_rotation_never_leaves_the_signing_key_unknown() {
        let mut front = front();
        let (sign, retire) = (
            |id: &str| Change::SignWithFrontKey { name: "f1".to_owned(), id: id.to_owned() },
            |keep: &str| Change::RetireFrontKeys { name: "f1".to_owned(), keep: keep.to_owned() },
        );
        turn(&mut front, &add("new")).unwrap();
        assert_eq!(front.signing_key_id(), "old", "published, not yet signed with");
        assert!(turn(&mut front, &retire("new")).is_err(), "the old one is still in use");
        assert!(turn(&mut front, &sign("other")).is_err(), "nobody knows it");
        turn(&mut front, &sign("new")).unwrap();
        assert_eq!((front.signing_key_id(), front.keys.len()), ("new", 2), "both are believed while it changes");
        turn(&mut front, &retire("new")).unwrap();
        assert_eq!((front.signing_key_id(), front.keys.len()), ("new", 1));
    }

    #[test]
    fn keys_do_not_pile_up() {
        let mut front = front();
        for id in ["a", "b"] {
            turn(&mut front, &add(id)).unwrap();
        }
        assert!(turn(&mut front, &add("c")).is_err());
    }

    #[test]
    fn a_record_of_an_older_version_is_an_active_front_that_signs_with_its_first_key() {
        let old = r#"{"name":"f1","source_addresses":[],"keys":[{"id":"k","sealed_key":"x"}]}"#;
        let front: FrontMember = serde_json::from_str(old).unwrap();
        assert_eq!((front.state, front.signing_key_id()), (MemberState::Active, "k"));
    }
}
