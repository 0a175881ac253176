//! Circles of imports between the modules of a crate.

use std::collections::{BTreeMap, BTreeSet};

use crate::api::modules::{Crate, Meaning, ModulePath, conditions_of, imports_of};

/// Modules that import from each other in a circle: none of them can be read alone.
pub(crate) fn longest(library: &Crate) -> Vec<String> {
    let mut edges: BTreeMap<&ModulePath, BTreeSet<ModulePath>> = BTreeMap::new();
    for (module, known) in &library.modules {
        let to = edges.entry(module).or_default();
        for item in &known.items {
            let syn::Item::Use(imported) = item else { continue };
            let in_tests = conditions_of(&imported.attrs).iter().any(|c| c == "test");
            // A re-export shows an item and does not need it.
            let re_exports = !matches!(imported.vis, syn::Visibility::Inherited);
            if in_tests || re_exports {
                continue;
            }
            for import in imports_of(item) {
                // An import means the module that defines the item, not one that re-exports it.
                match library.resolve(module, &import.path, 0) {
                    Meaning::Item(of, _) | Meaning::Module(of) => to.insert(of),
                    Meaning::Foreign => false,
                };
            }
        }
    }
    let reached: BTreeMap<&ModulePath, BTreeSet<&ModulePath>> =
        edges.keys().map(|module| (*module, reachable(&edges, module))).collect();
    let circle = |module: &ModulePath| -> Vec<String> {
        let back = |other: &&&ModulePath| reached.get(**other).is_some_and(|r| r.contains(module));
        reached[module].iter().filter(back).map(|other| other.join("::")).collect()
    };
    edges.keys().map(|module| circle(module)).max_by_key(Vec::len).unwrap_or_default()
}

/// The modules that `from` imports, directly or through others. Each is visited once.
fn reachable<'a>(
    edges: &'a BTreeMap<&'a ModulePath, BTreeSet<ModulePath>>,
    from: &ModulePath,
) -> BTreeSet<&'a ModulePath> {
    let mut seen = BTreeSet::new();
    let mut open: Vec<&ModulePath> = edges.get(from).into_iter().flatten().collect();
    while let Some(module) = open.pop() {
        if seen.insert(module) {
            open.extend(edges.get(module).into_iter().flatten());
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_that_need_each_other_are_found() {
        let lib = "mod a { use crate::b::B; pub struct A; }\n\
                   mod b { use super::c::*; pub struct B; }\n\
                   mod c { use crate::A; pub struct C; }\n\
                   mod d { use crate::A; #[cfg(test)] use crate::e::E; }\n\
                   mod e { use crate::d; struct E; }\n\
                   pub use a::A;\nuse d as _;\n";
        let root = std::env::temp_dir().join(format!("xtask-circles-{}", std::process::id()));
        std::fs::create_dir_all(&root).unwrap();
        std::fs::write(root.join("lib.rs"), lib).unwrap();
        assert_eq!(longest(&Crate::parse(&root).unwrap()), ["a", "b", "c"]);
        std::fs::remove_dir_all(root).unwrap();
    }
}
