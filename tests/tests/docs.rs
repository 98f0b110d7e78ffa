//! The documents say what the code says.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use replication::decision::Rule;

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

fn document(name: &str) -> Result<String> {
    let path = root().join("docs").join(name);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

#[test]
fn every_resync_rule_has_a_row_that_names_it() -> Result<()> {
    let text = document("resync-rules.md")?;
    let rows: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    let documented: BTreeSet<&str> = rows.iter().copied().collect();
    let rules: BTreeSet<&str> = Rule::ALL.into_iter().map(Rule::name).collect();
    assert_eq!(documented, rules);
    assert_eq!(rows.len(), rules.len(), "a rule has two rows");
    Ok(())
}

/// Test names are told from other code by their many underscores.
const UNDERSCORES_OF_A_TEST: usize = 4;

fn sources(dir: &Path, text: &mut String) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                sources(&path, text)?;
            }
        } else if name.ends_with(".rs") {
            text.push_str(&fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

#[test]
fn each_test_that_a_document_names_exists() -> Result<()> {
    let mut code = String::new();
    sources(&root(), &mut code)?;
    let mut named = 0;
    let mut missing = Vec::new();
    for document_name in ["semantics.md", "resync-rules.md", "testing.md"] {
        let text = document(document_name)?;
        let words = text.split('`').skip(1).step_by(2);
        let tests = words.filter(|word| {
            let plain = word
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            plain && word.matches('_').count() >= UNDERSCORES_OF_A_TEST
        });
        for test in tests {
            named += 1;
            if !code.contains(&format!("fn {test}(")) {
                missing.push(format!("{document_name}: {test}"));
            }
        }
    }
    assert!(named > 0, "no document names a test");
    assert!(missing.is_empty(), "{missing:#?}");
    Ok(())
}
