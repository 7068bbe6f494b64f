//! `credential`: user names and passwords of devices and applications. A password is read from standard input, a file
//! or a prompt, or made by the cluster; it is never a flag's value, where other users and shell histories see it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use posthouse_proto::v1::{
    Credential, ListCredentialsReply, ListRequest, NameRequest, PutCredentialReply, PutCredentialRequest, StringList,
    TestCredentialRequest,
};
use serde_json::Value;

use super::usage::{note_missing, seen};
use super::{Noun, suggest};
use crate::client::Client;
use crate::console::Console;
use crate::error::{Exit, Failure, code};
use crate::mutation::{Deed, WriteFlags, finish};
use crate::output::{self, Format, Rows, or_dash, short_time};
use crate::parse;

/// `credential …`.
#[derive(Debug, Subcommand)]
pub(crate) enum CredentialCommand {
    /// All credentials
    List,
    /// One credential, without its password
    Show {
        /// The user name
        user: String,
    },
    /// Make a credential
    #[command(visible_alias = "add")]
    Create(CreateArgs),
    /// Change a credential; what is not named stays as it is
    Set(SetArgs),
    /// Give a credential a new password beside the old one, or end the old one
    Rotate(RotateArgs),
    /// Check a password against the cluster, without mail; exit 1 if it would not do
    Test(TestArgs),
    /// Let it be used
    Enable(NamedArgs),
    /// Let it be used no more, on open connections too
    Disable(NamedArgs),
    /// Delete a credential
    #[command(visible_alias = "remove")]
    Delete(NamedArgs),
}

/// Where a password comes from.
#[derive(Debug, Default, Args)]
#[group(multiple = false)]
pub(crate) struct PasswordFlags {
    /// Read it from standard input (the first line)
    #[arg(long)]
    password_stdin: bool,
    /// Read it from a file (the first line)
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Let the cluster make one; it is printed once
    #[arg(long)]
    generate: bool,
}

/// What a password is made like, and what is kept of it.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct SecretFlags {
    /// Characters of a generated password, 8 to 64 [default: as many as 80 bits need]
    #[arg(long, value_name = "N", requires = "generate")]
    length: Option<u32>,
    /// What it is made of: readable (no look-alikes), letters, digits, mixed or hex [default: readable]
    #[arg(long, value_name = "WORD", requires = "generate")]
    alphabet: Option<String>,
    /// Keep SCRAM-SHA-256 keys beside the hash, or with =no forget them; needs the password
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_parser = parse::boolean)]
    scram: Option<bool>,
}

/// The settings of a credential.
#[derive(Debug, Args)]
pub(crate) struct CredentialFlags {
    /// As whom it may send: an address, @domain or *; repeat
    #[arg(long = "sender", visible_alias = "senders", value_name = "PATTERN", value_delimiter = ',')]
    senders: Option<Vec<String>>,
    /// It may send as every address of the domain in its user name
    #[arg(long, conflicts_with = "senders")]
    own_domain: bool,
    /// From where: address, first-last or CIDR; empty: anywhere
    #[arg(long, visible_aliases = ["from", "source-range"], value_name = "RANGE", value_delimiter = ',')]
    source_ranges: Option<Vec<String>>,
    /// At which connectors; empty: all
    #[arg(long = "connector", visible_alias = "connectors", value_name = "NAME", value_delimiter = ',')]
    connectors: Option<Vec<String>>,
    /// By which client certificate it is known: sha256:HEX, dns:NAME, email:ADDRESS or "subject:CN=NAME, O=…"; repeat
    #[arg(long = "certificate", visible_alias = "certificates", value_name = "PATTERN")]
    certificates: Option<Vec<String>>,
    /// Until when: a time from now, an RFC 3339 time, or never
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
    /// What it is
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// Whose it is
    #[arg(long, value_name = "WHO")]
    owner: Option<String>,
    /// Whether it can be used
    #[arg(long, value_name = "BOOL", value_parser = parse::boolean)]
    enabled: Option<bool>,
}

/// Flags of `credential create`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl credential create scanner@corp.example --own-domain --generate
  posthousectl credential create erp --sender erp@corp.example --sender @billing.example --password-stdin < secret
  posthousectl credential create fax --sender fax@corp.example --generate --alphabet digits --length 12
  posthousectl credential create gateway --sender '*' --from 10.30.4.11 --password-file secret")]
pub(crate) struct CreateArgs {
    /// The user name
    user: String,
    #[command(flatten)]
    password: PasswordFlags,
    #[command(flatten)]
    secret: SecretFlags,
    #[command(flatten)]
    settings: CredentialFlags,
    #[command(flatten)]
    write: WriteFlags,
}

/// Flags of `credential set`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl credential set erp --sender erp@corp.example --expires 90d
  posthousectl credential set erp --expires never")]
pub(crate) struct SetArgs {
    /// The user name
    user: String,
    #[command(flatten)]
    password: PasswordFlags,
    #[command(flatten)]
    secret: SecretFlags,
    #[command(flatten)]
    settings: CredentialFlags,
    #[command(flatten)]
    write: WriteFlags,
}

/// Flags of `credential rotate`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl credential rotate erp --generate
  posthousectl credential rotate erp --password-stdin --keep-old forever < secret
  posthousectl credential rotate erp --finish")]
pub(crate) struct RotateArgs {
    /// The user name
    user: String,
    /// How long the old password is taken beside the new one: a time, 0, or forever (until --finish) [default: 7d]
    #[arg(long, value_name = "TIME", value_parser = keep_old, conflicts_with = "finish")]
    keep_old: Option<u64>,
    /// Every device has the new password: end the old one
    #[arg(long, conflicts_with_all = ["generate", "password_stdin", "password_file", "scram"])]
    finish: bool,
    #[command(flatten)]
    password: PasswordFlags,
    #[command(flatten)]
    secret: SecretFlags,
    #[command(flatten)]
    write: WriteFlags,
}

/// Flags of `credential test`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl credential test erp --password-stdin < secret
  posthousectl credential test scanner@corp.example --source 10.20.31.7 --connector submission")]
pub(crate) struct TestArgs {
    /// The user name
    user: String,
    /// Read the password from standard input (the first line)
    #[arg(long)]
    password_stdin: bool,
    /// Read it from a file (the first line)
    #[arg(long, value_name = "FILE", conflicts_with = "password_stdin")]
    password_file: Option<PathBuf>,
    /// As if from this address
    #[arg(long, value_name = "IP", visible_alias = "from-ip", default_value = "", hide_default_value = true)]
    source: String,
    /// As if on this connector
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    connector: String,
}

/// Flags of the verbs that need a name only.
#[derive(Debug, Args)]
pub(crate) struct NamedArgs {
    /// The user name
    user: String,
    #[command(flatten)]
    write: WriteFlags,
}

const CREDENTIAL: Noun = Noun { name: "credential", missing: "PH-CRED-001", list: "credential list" };
/// Longer than any password that a device can hold; argon2 would take it, a mistake would be likelier.
const PASSWORD_BYTES_MAX: u64 = 1024;

/// Runs `credential …`.
///
/// # Errors
/// What went wrong.
pub(crate) async fn run(command: CredentialCommand, console: &Console) -> Result<Exit, Failure> {
    match command {
        CredentialCommand::List => list(console, &with_usage(&mut console.client().await?).await?),
        CredentialCommand::Show { user } => {
            let reply = with_usage(&mut console.client().await?).await?;
            let user = user.trim().to_lowercase();
            let found = CREDENTIAL.find(reply.credentials, &user, |credential| &credential.user)?;
            show(console, &found)?;
            note_missing(console, reply.usage.as_ref());
            Ok(Exit::Done)
        }
        CredentialCommand::Create(args) => create(args, console).await,
        CredentialCommand::Set(args) => {
            let credential = args.settings.credential(&args.user)?;
            let password = args.password.read(false)?;
            let nothing = credential == (Credential { user: args.user.clone(), ..Credential::default() });
            if nothing && password == Password::Kept && args.secret.scram.is_none() {
                let fix = format!("posthousectl credential set {} --note TEXT; see --help", args.user);
                return Err(Failure::usage("nothing to change", "no setting was named", fix));
            }
            let request = request(credential, password, &args.secret, &args.write);
            put(console, request, &args.write, ("credential-set", "changed")).await
        }
        CredentialCommand::Rotate(args) => {
            let credential = Credential { user: args.user.clone(), ..Credential::default() };
            let password = if args.finish { Password::Kept } else { args.password.read(true)? };
            let mut request = request(credential, password, &args.secret, &args.write);
            (request.rotate, request.finish_rotation) = (!args.finish, args.finish);
            request.keep_old_secs = args.keep_old;
            let done = if args.finish { "finished its rotation" } else { "rotated" };
            put(console, request, &args.write, ("credential-rotate", done)).await
        }
        CredentialCommand::Test(args) => test(args, console).await,
        CredentialCommand::Enable(args) => switch(args, console, true).await,
        CredentialCommand::Disable(args) => switch(args, console, false).await,
        CredentialCommand::Delete(args) => delete(args, console).await,
    }
}

async fn create(args: CreateArgs, console: &Console) -> Result<Exit, Failure> {
    let mut credential = args.settings.credential(&args.user)?;
    if credential.senders.as_ref().is_none_or(|list| list.values.is_empty()) {
        let own = args.user.rsplit_once('@').map_or_else(
            || "--own-domain    not possible here: the user name has no @domain".to_owned(),
            |(_, domain)| format!("--own-domain    every address @{domain}"),
        );
        return Err(Failure::usage(
            format!("as whom may \"{}\" send?", args.user),
            "a credential that may send as anybody must be one on purpose",
            format!("{own}\n--sender ADDRESS, or --sender @DOMAIN; repeat\n--sender '*'    as anybody"),
        ));
    }
    credential.enabled = credential.enabled.or(Some(true));
    // A certificate alone may prove who it is.
    let needed = credential.certificates.as_ref().is_none_or(|list| list.values.is_empty());
    let password = args.password.read(needed)?;
    let mut request = request(credential, password, &args.secret, &args.write);
    request.create = true;
    put(console, request, &args.write, ("credential-create", "created")).await
}

/// `7d`, `0`, or `forever`, as the cluster reads it.
fn keep_old(text: &str) -> Result<u64, String> {
    if text.eq_ignore_ascii_case("forever") {
        return Ok(u64::MAX);
    }
    if text == "0" {
        return Ok(0);
    }
    parse::duration(text).map(|time| time.as_secs())
}

fn request(
    credential: Credential,
    password: Password,
    secret: &SecretFlags,
    write: &WriteFlags,
) -> PutCredentialRequest {
    PutCredentialRequest {
        credential: Some(credential),
        generate: password == Password::Generated,
        password: match password {
            Password::Given(text) => Some(text),
            Password::Kept | Password::Generated => None,
        },
        options: Some(write.options(false)),
        generate_length: secret.length.unwrap_or_default(),
        generate_alphabet: secret.alphabet.clone().unwrap_or_default(),
        scram: secret.scram,
        ..PutCredentialRequest::default()
    }
}

async fn test(args: TestArgs, console: &Console) -> Result<Exit, Failure> {
    let TestArgs { user, password_stdin, password_file, source, connector } = args;
    let flags = PasswordFlags { password_stdin, password_file, generate: false };
    let Password::Given(password) = flags.read_once()? else { return Ok(Exit::No) };
    let mut client = console.client().await?;
    let request = TestCredentialRequest { user: user.clone(), password, source, connector };
    let reply = match client.read(async |mut admin| admin.test_credential(request.clone()).await).await {
        Ok(reply) => reply,
        Err(failure) => return Err(suggest(CREDENTIAL, failure, &user, names(&mut client)).await),
    };
    if console.out.format.is_json() {
        console.out.json("credential-test", &reply)?;
    } else {
        let words = match (reply.ok, reply.old_password) {
            (true, false) => format!("{user}: the password is right\n"),
            (true, true) => format!("{user}: the password is right, but from before the rotation that is under way\n"),
            (false, _) => format!("{user}: no; {}\n", reply.reason),
        };
        output::text(&words)?;
    }
    Ok(if reply.ok { Exit::Done } else { Exit::No })
}

/// What becomes of the password.
#[derive(Debug, PartialEq, Eq)]
enum Password {
    Kept,
    Given(String),
    Generated,
}

impl PasswordFlags {
    /// Reads the password from where the flags say; prompts on a terminal when one is `needed` and none is named.
    fn read(&self, needed: bool) -> Result<Password, Failure> {
        self.read_with(needed, prompt)
    }

    /// The same for a password that is only tried: a prompt asks once.
    fn read_once(&self) -> Result<Password, Failure> {
        self.read_with(true, || rpassword::prompt_password("Password: "))
    }

    fn read_with(&self, needed: bool, prompt: impl FnOnce() -> io::Result<String>) -> Result<Password, Failure> {
        let unreadable = |what: String, error: &io::Error| {
            Failure::new(Exit::Invalid, code::FILE, what, error.to_string(), "--generate makes one")
        };
        if self.generate {
            return Ok(Password::Generated);
        }
        let text = if self.password_stdin {
            first_line(io::stdin().lock())
                .map_err(|error| unreadable("the password cannot be read from standard input".to_owned(), &error))?
        } else if let Some(path) = &self.password_file {
            File::open(path)
                .and_then(|file| first_line(BufReader::new(file)))
                .map_err(|error| unreadable(format!("{} cannot be read", path.display()), &error))?
        } else if !needed {
            return Ok(Password::Kept);
        } else if io::stdin().is_terminal() {
            prompt().map_err(|error| unreadable("the password cannot be read".to_owned(), &error))?
        } else {
            return Err(Failure::usage(
                "a password is needed",
                "none was named, and there is no terminal to ask at",
                "--generate, --password-stdin or --password-file FILE",
            ));
        };
        if text.is_empty() {
            return Err(Failure::usage(
                "the password is empty",
                "an empty one protects nothing",
                "--generate makes one",
            ));
        }
        Ok(Password::Given(text))
    }
}

fn first_line(source: impl BufRead) -> io::Result<String> {
    let mut text = String::new();
    source.take(PASSWORD_BYTES_MAX + 1).read_line(&mut text)?;
    let line = text.trim_end_matches(['\r', '\n']);
    if line.len() as u64 > PASSWORD_BYTES_MAX {
        return Err(io::Error::other(format!("it is longer than {PASSWORD_BYTES_MAX} bytes")));
    }
    Ok(line.to_owned())
}

fn prompt() -> io::Result<String> {
    let first = rpassword::prompt_password("Password: ")?;
    if rpassword::prompt_password("Again: ")? == first {
        Ok(first)
    } else {
        Err(io::Error::other("the two are not the same"))
    }
}

impl CredentialFlags {
    fn credential(&self, user: &str) -> Result<Credential, Failure> {
        let list = |given: &Option<Vec<String>>| given.as_ref().map(|given| StringList { values: parse::words(given) });
        let senders = if self.own_domain { Some(own_domain(user)?) } else { list(&self.senders) };
        Ok(Credential {
            user: user.to_owned(),
            senders,
            source_ranges: list(&self.source_ranges),
            connectors: list(&self.connectors),
            certificates: self.certificates.as_ref().map(|given| StringList { values: given.clone() }),
            enabled: self.enabled,
            note: self.note.clone(),
            owner: self.owner.clone(),
            expires_at: self.expires.as_deref().map(|text| expiry(text, jiff::Timestamp::now())).transpose()?,
            ..Credential::default()
        })
    }
}

fn own_domain(user: &str) -> Result<StringList, Failure> {
    match user.rsplit_once('@') {
        Some((_, domain)) if !domain.is_empty() => Ok(StringList { values: vec![format!("@{domain}")] }),
        _ => Err(Failure::usage(
            format!("\"{user}\" has no domain of its own"),
            "--own-domain takes it from a user name such as scanner@corp.example",
            "--sender ADDRESS, --sender @DOMAIN or --sender '*'",
        )),
    }
}

/// The RFC 3339 time that is meant; empty for never.
fn expiry(text: &str, now: jiff::Timestamp) -> Result<String, Failure> {
    if text.trim().is_empty() || text.trim().eq_ignore_ascii_case("never") {
        return Ok(String::new());
    }
    if let Ok(at) = text.trim().parse::<jiff::Timestamp>() {
        return Ok(at.to_string());
    }
    let wrong = |cause: String| Failure::usage(format!("--expires \"{text}\" is not a time"), cause, "--expires 90d");
    let ahead: Duration = parse::duration(text).map_err(wrong)?;
    let at = now.checked_add(ahead).map_err(|error| wrong(error.to_string()))?;
    Ok(at.to_string())
}

async fn credentials(client: &mut Client) -> Result<ListCredentialsReply, Failure> {
    client.read(async |mut admin| admin.list_credentials(ListRequest::default()).await).await
}

/// The same, with what every node knows of their use.
async fn with_usage(client: &mut Client) -> Result<ListCredentialsReply, Failure> {
    client.read(async |mut admin| admin.list_credentials(ListRequest { with_usage: true }).await).await
}

async fn names(client: &mut Client) -> Result<Vec<String>, Failure> {
    Ok(credentials(client).await?.credentials.into_iter().map(|credential| credential.user).collect())
}

async fn put(
    console: &Console,
    request: PutCredentialRequest,
    write: &WriteFlags,
    (schema, done): (&'static str, &'static str),
) -> Result<Exit, Failure> {
    let user = request.credential.as_ref().map(|credential| credential.user.clone()).unwrap_or_default();
    let mut client = console.client().await?;
    let reply = client.write(async |mut admin| admin.put_credential(request.clone()).await).await;
    let PutCredentialReply { write: written, generated_password } = match reply {
        Ok(reply) => reply,
        Err(failure) => return Err(suggest(CREDENTIAL, failure, &user, names(&mut client)).await),
    };
    let mut deed = Deed::new(schema, CREDENTIAL.name, &user, done);
    deed.extra.insert("user".to_owned(), Value::String(user));
    if !generated_password.is_empty() && !write.dry_run {
        deed.more = format!("password   {generated_password}   shown once: the cluster keeps a hash only\n");
        deed.extra.insert("password".to_owned(), Value::String(generated_password));
    }
    finish(console, &mut client, write, written.unwrap_or_default(), deed).await
}

async fn switch(args: NamedArgs, console: &Console, enabled: bool) -> Result<Exit, Failure> {
    let credential = Credential { user: args.user, enabled: Some(enabled), ..Credential::default() };
    let words = if enabled { ("credential-enable", "enabled") } else { ("credential-disable", "disabled") };
    let request = request(credential, Password::Kept, &SecretFlags::default(), &args.write);
    put(console, request, &args.write, words).await
}

async fn delete(args: NamedArgs, console: &Console) -> Result<Exit, Failure> {
    let NamedArgs { user, write } = args;
    let mut client = console.client().await?;
    let request = NameRequest { name: user.clone(), options: Some(write.options(false)) };
    match client.write(async |mut admin| admin.delete_credential(request.clone()).await).await {
        Ok(reply) => {
            let deed = Deed::new("credential-delete", CREDENTIAL.name, &user, "deleted");
            finish(console, &mut client, &write, reply, deed).await
        }
        Err(failure) => Err(suggest(CREDENTIAL, failure, &user, names(&mut client)).await),
    }
}

/// One credential: its settings, then a line for each password that is alive.
fn show(console: &Console, found: &Credential) -> Result<(), Failure> {
    if console.out.format.is_json() || console.out.format == Format::Name {
        console.out.show("credential-show", found, "user")?;
        return Ok(());
    }
    console.out.show("credential-show", &Credential { secrets: Vec::new(), ..found.clone() }, "user")?;
    let newest = found.secrets.iter().map(|secret| secret.id).max();
    for secret in &found.secrets {
        let until = match secret.expires_at.as_str() {
            "" if Some(secret.id) != newest => ", taken until rotate --finish".to_owned(),
            "" => String::new(),
            at => format!(", taken until {}", short_time(at)),
        };
        let age = if Some(secret.id) == newest { "" } else { ", from before the rotation" };
        let scram = if secret.scram { ", with SCRAM-SHA-256 keys" } else { "" };
        output::text(&format!("password {}  set {}{age}{until}{scram}\n", secret.id, short_time(&secret.created_at)))?;
    }
    Ok(())
}

fn list(console: &Console, reply: &ListCredentialsReply) -> Result<Exit, Failure> {
    console.out.list("credential-list", reply, "credentials", "user", |wide| {
        let mut headings = vec!["USER", "MAY SEND AS", "FROM", "EXPIRES", "FIRST SEEN", "LAST SEEN", ">COUNT", "STATE"];
        if wide {
            headings.extend(["CONNECTORS", "OWNER", "NOTE", ">REVISION"]);
        }
        let mut rows = Rows::new(&headings);
        let words = |list: &Option<StringList>, none: &str| match list {
            Some(list) if !list.values.is_empty() => list.values.join(", "),
            _ => none.to_owned(),
        };
        for credential in &reply.credentials {
            let state = match (credential.enabled, credential.expired) {
                (Some(false), _) => "disabled",
                (_, true) => "expired",
                _ if credential.secrets.len() > 1 => "rotating",
                _ => "enabled",
            };
            let mut row = vec![
                credential.user.clone(),
                words(&credential.senders, "nobody"),
                words(&credential.source_ranges, "any"),
                credential.expires_at.as_deref().map_or_else(|| "never".to_owned(), short_time),
                seen(&credential.first_seen),
                seen(&credential.last_seen),
                parse::grouped(credential.count),
                state.to_owned(),
            ];
            if wide {
                row.extend([
                    words(&credential.connectors, "all"),
                    or_dash(credential.owner.as_deref().unwrap_or_default()),
                    or_dash(credential.note.as_deref().unwrap_or_default()),
                    credential.revision.to_string(),
                ]);
            }
            rows.push(row);
        }
        rows
    })?;
    note_missing(console, reply.usage.as_ref());
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_password_is_the_first_line() {
        assert_eq!(first_line(io::Cursor::new("s3cret \r\nmore\n")).unwrap(), "s3cret ");
        assert_eq!(first_line(io::Cursor::new("s3cret")).unwrap(), "s3cret");
        assert!(first_line(io::Cursor::new("x".repeat(2000))).is_err());
        assert!(first_line(io::Cursor::new(b"\xff\xfe\n")).is_err());
    }

    #[test]
    fn the_own_domain_comes_from_the_user_name() {
        assert_eq!(own_domain("scanner@corp.example").unwrap().values, ["@corp.example"]);
        for user in ["scanner", "scanner@"] {
            assert_eq!(own_domain(user).unwrap_err().exit_code(), 2, "{user}");
        }
    }

    #[test]
    fn an_expiry_is_from_now_or_a_time_or_never() {
        let now: jiff::Timestamp = "2026-08-02T10:00:00Z".parse().unwrap();
        assert_eq!(expiry("90d", now).unwrap(), "2026-10-31T10:00:00Z");
        assert_eq!(expiry("2027-01-01T00:00:00Z", now).unwrap(), "2027-01-01T00:00:00Z");
        assert_eq!(expiry("never", now).unwrap(), "");
        assert_eq!(expiry("soon", now).unwrap_err().exit_code(), 2);
    }
}
