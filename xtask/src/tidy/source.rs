//! Checks of one source file, by its text.

/// A row of a table in a doc comment, or a raw string with nothing beside it.
pub(crate) fn cannot_be_broken(line: &str) -> bool {
    let code = line.trim_start();
    ["//! |", "/// |", "r#\"", "r##\""].iter().any(|start| code.starts_with(start))
}

/// Every public async function says what happens when its future is dropped.
pub(crate) fn undocumented_cancel_safety(file: &str, text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut problems = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let documented_above = || doc_above(&lines[..number]).contains("# Cancel safety");
        if code.starts_with("pub async fn ") && !documented_above() {
            problems.push(format!("{file}:{}: no `# Cancel safety` section", number + 1));
        }
    }
    problems
}

/// The doc comment that ends right above, attributes between it and here skipped.
fn doc_above(lines: &[&str]) -> String {
    let mut doc = String::new();
    for line in lines.iter().rev().map(|line| line.trim_start()) {
        if let Some(text) = line.strip_prefix("///") {
            doc.insert_str(0, &format!("{}\n", text.trim_start()));
        } else if !line.starts_with("#[") && !line.starts_with(")]") {
            break;
        }
    }
    doc
}

/// What is switched off says why: `#[allow]`, `#[expect]`, and `#[ignore]` the missing service.
pub(crate) fn reasonless(file: &str, text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut problems = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let attribute = |name: &str| {
            code.starts_with(&format!("#[{name}")) || code.starts_with(&format!("#![{name}"))
        };
        let switches = ["allow(", "expect("].iter().any(|name| attribute(name));
        // An attribute may go over several lines: its end is the first line with its bracket.
        let ends = |line: &&str| line.trim_end().ends_with(")]");
        let whole = lines[number..].iter().take(8).position(ends).unwrap_or(0);
        let has_reason = lines[number..=number + whole].iter().any(|l| l.contains("reason"));
        if switches && !has_reason {
            problems.push(format!("{file}:{}: `{}` without a reason", number + 1, code.trim()));
        }
        // `cargo xtask test` runs ignored tests when it has found every service.
        if attribute("ignore") && !code.starts_with("#[ignore = \"needs ") {
            let said = "a test may be left out only as `#[ignore = \"needs SERVICE\"]`";
            problems.push(format!("{file}:{}: {said}", number + 1));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_async_fn_without_the_section_is_found() {
        let bad = "/// Does.\npub async fn go() {}\n";
        assert_eq!(undocumented_cancel_safety("a.rs", bad).len(), 1);
        let good = "/// Does.\n///\n/// # Cancel safety\n#[must_use]\npub async fn go() {}\n";
        assert!(undocumented_cancel_safety("a.rs", good).is_empty());
    }

    #[test]
    fn a_switched_off_lint_needs_a_reason() {
        assert_eq!(reasonless("a.rs", "#[allow(dead_code)]\nfn f() {}").len(), 1);
        assert_eq!(reasonless("a.rs", "    #[ignore]\nfn f() {}").len(), 1);
        assert_eq!(reasonless("a.rs", "    #[ignore = \"slow\"]\nfn f() {}").len(), 1);
        assert!(reasonless("a.rs", "    #[ignore = \"needs redis\"]\nfn f() {}").is_empty());
        assert!(
            reasonless("a.rs", "#[expect(dead_code, reason = \"kept\")]\nfn f() {}").is_empty()
        );
        let long = "#[expect(\n    dead_code,\n    reason = \"kept\"\n)]\nfn f() {}";
        assert!(reasonless("a.rs", long).is_empty());
    }
}
