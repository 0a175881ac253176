//! Copies of the templates, and the manifest of a member that inherits everything.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{copy, manifest, templates};
use crate::run::{cargo_in, output};

/// A temporary folder, removed on drop.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.0.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_manifest_is_written_out() {
    let folder = Folder::new("manifest");
    folder.write(
        "Cargo.toml",
        "[workspace]\nmembers = [\"one\"]\n[workspace.package]\nedition = \"2024\"\n\
         [workspace.dependencies]\nplain = \"1.2\"\nbare = { version = \"3\", \
         default-features = false, features = [\"std\"] }\nother = { path = \"other\", \
         version = \"0.1.0\" }\n[workspace.lints.rust]\nunsafe_code = \"forbid\"\n\
         [profile.test]\nopt-level = 1\n",
    );
    folder.write("other/Cargo.toml", "");
    folder.write(
        "one/Cargo.toml",
        "[package]\nname = \"one\"\nedition.workspace = true\n\n[lints]\nworkspace = true\n\n\
         [dependencies]\n# Why it is here.\nplain.workspace = true\n\
         bare = { workspace = true, features = [\"net\"], optional = true }\n\
         beside = { path = \"../other\", package = \"other\" }\nown = \"4\"\n\n\
         [dev-dependencies]\nother.workspace = true\n\n\
         [target.'cfg(unix)'.dependencies]\nplain = { workspace = true, features = [\"x\"] }\n",
    );
    let text = manifest::written_out(&folder.0, Path::new("one")).unwrap();
    let other = folder.0.join("other").canonicalize().unwrap();
    let other = other.display();
    let expected = format!(
        "[package]\nname = \"one\"\nedition = \"2024\"\n\n\
         [lints.rust]\nunsafe_code = \"forbid\"\n\n\
         [dependencies]\n# Why it is here.\nplain = \"1.2\"\n\
         bare = {{ version = \"3\", default-features = false, features = [\"std\", \"net\"], \
         optional = true }}\n\
         beside = {{ path = \"{other}\", package = \"other\" }}\nown = \"4\"\n\n\
         [dev-dependencies]\nother = {{ path = \"{other}\", version = \"0.1.0\" }}\n\n\
         [target.'cfg(unix)'.dependencies]\n\
         plain = {{ version = \"1.2\", features = [\"x\"] }}\n\n\
         [profile.test]\nopt-level = 1\n"
    );
    assert_eq!(text, expected);
    folder.write("one/Cargo.toml", "[package]\n[dependencies]\nabsent.workspace = true\n");
    let error = manifest::written_out(&folder.0, Path::new("one")).unwrap_err();
    assert!(error.contains("has no dependencies.absent"), "{error}");
}

/// Cargo accepts the manifest of each copy and finds every dependency; building and testing the
/// copies is a step of `cargo xtask ci`.
#[test]
fn every_template_can_be_copied() {
    let folder = Folder::new("copies");
    // A workspace above the copies does not take them for members.
    folder.write("Cargo.toml", "[workspace]\nresolver = \"3\"\n");
    let templates = templates().unwrap();
    assert!(templates.len() >= 2, "{templates:?}");
    for name in &templates {
        let copied = folder.0.join(name);
        copy(&copied, name).unwrap();
        let text = fs::read_to_string(copied.join("Cargo.toml")).unwrap();
        assert!(!text.contains("workspace = true"), "{text}");
        output(&mut cargo_in(&copied, &["metadata", "--format-version", "1", "--quiet"])).unwrap();
        let diff = ["-r", "--brief", "--ignore-matching-lines=const CLUSTER: u128 = "];
        let original = crate::root().join("examples").join(name).join("src");
        output(Command::new("diff").args(diff).arg(original).arg(copied.join("src"))).unwrap();
        assert!(copy(&copied, name).unwrap_err().contains("is not empty"));
    }
    assert!(copy(&folder.0.join("new"), "nothing").unwrap_err().contains("resilient-client"));
}

/// Copies with one number would be one cluster: a node with a wrong address would join the other.
#[test]
fn each_copy_gets_a_cluster_number_of_its_own() {
    let folder = Folder::new("clusters");
    let number = |file: &Path| {
        let text = fs::read_to_string(file).unwrap();
        let line = text.lines().find(|line| line.contains("const CLUSTER: u128 = ")).unwrap();
        line.split_once(" = ").unwrap().1.trim_end_matches(';').to_owned()
    };
    let clusters = [
        ("account", "src/main.rs"),
        ("cart", "src/main.rs"),
        ("leader", "src/node.rs"),
        ("likes", "src/main.rs"),
        ("store", "src/node.rs"),
        ("transfer", "src/group.rs"),
    ];
    for (name, file) in clusters {
        let mut numbers = vec![number(&crate::root().join("examples").join(name).join(file))];
        for copied in ["one", "two"] {
            let copied = folder.0.join(format!("{name}-{copied}"));
            copy(&copied, name).unwrap();
            numbers.push(number(&copied.join(file)));
        }
        numbers.sort();
        numbers.dedup();
        assert_eq!(numbers.len(), 3, "{name}: {numbers:?}");
        assert!(numbers.iter().all(|number| number.starts_with("0x")), "{name}: {numbers:?}");
    }
}

/// A template is copied whole, so what several of them need stands in each.
#[test]
fn the_files_that_templates_share_are_equal() {
    let files = [
        ("src/listen.rs", ""),
        ("src/own.rs", ""),
        ("src/pool.rs", "//! Connections to PostgreSQL"),
        ("src/demo/servers.rs", ""),
        ("src/demo/servers.sh", ""),
        ("src/cluster.rs", "//! A node of the cluster: its journal"),
        ("src/demo/process.rs", "//! The three nodes, each a process"),
    ];
    for (file, first_line) in files {
        let templates = fs::read_dir(crate::root().join("examples")).unwrap();
        let texts: Vec<_> = templates
            .filter_map(|template| fs::read_to_string(template.unwrap().path().join(file)).ok())
            .filter(|text| text.starts_with(first_line))
            .collect();
        assert!(texts.len() >= 2, "{file} is in {} templates", texts.len());
        assert!(texts.iter().all(|text| *text == texts[0]), "{file} differs");
    }
}
