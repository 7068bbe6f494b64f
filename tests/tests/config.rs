//! The example files are true, and a mistake in a file is named with its place.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::Command;

use posthouse_tests::{binary, repository};

fn check(args: &[&str]) -> (i32, String) {
    let output = Command::new(binary("posthouse")).arg("check-config").args(args).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn the_example_files_are_accepted() {
    let node = repository().join("deploy/node.example.toml");
    let (code, said) = check(&["--config", node.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    let front = repository().join("deploy/front.example.toml");
    let (code, said) = check(&["--front", "--config", front.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
}

#[test]
fn an_unknown_key_names_file_line_key_and_the_one_that_was_meant() {
    let dir = tempfile::tempdir().unwrap();
    for (example, from, to, place, args) in [
        ("node.example.toml", "listen = \"0.0.0.0:7180\"", "lisen = \"0.0.0.0:7180\"", "`lisen`", vec![]),
        ("front.example.toml", "rise = 2", "risse = 2", "`risse`", vec!["--front"]),
    ] {
        let text = std::fs::read_to_string(repository().join("deploy").join(example)).unwrap();
        assert!(text.contains(from));
        let line = text.lines().position(|line| line.starts_with(from)).unwrap() + 1;
        let path = dir.path().join(example);
        std::fs::write(&path, text.replace(from, to)).unwrap();
        let path = path.to_str().unwrap();
        let (code, said) = check(&[&args[..], &["--config", path]].concat());
        assert_eq!(code, 64, "{said}");
        for word in [&format!("{path}:{line}:1"), place, "did you mean"] {
            assert!(said.contains(word), "{word:?} is not in: {said}");
        }
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let (code, said) = check(&["--config", "/nowhere/node.toml"]);
    assert_eq!(code, 64);
    assert!(said.contains("/nowhere/node.toml"), "{said}");
}
