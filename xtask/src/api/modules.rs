//! The modules of a crate, and what a name means in one of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::{Attribute, Item, UseTree};

/// The path of a module inside its crate; empty for the root.
pub(crate) type ModulePath = Vec<String>;

/// Chains of `pub use` longer than this are taken for circles.
const CHAIN_MAX: usize = 20;

/// A crate's modules, but for those of its tests.
pub(crate) struct Crate {
    pub(crate) modules: BTreeMap<ModulePath, Module>,
}

pub(crate) struct Module {
    pub(crate) items: Vec<Item>,
    /// The conditions under which it is compiled.
    pub(crate) conditions: Vec<String>,
}

/// One name that a `use` brings: its path, and what it is called here. `*` for everything.
pub(crate) struct Import {
    pub(crate) path: Vec<String>,
    pub(crate) name: String,
}

/// What a name stands for.
pub(crate) enum Meaning<'a> {
    Item(ModulePath, &'a Item),
    Module(ModulePath),
    /// Of another crate.
    Foreign,
}

impl Crate {
    /// Reads the crate whose `lib.rs` is in `src`.
    pub(crate) fn parse(src: &Path) -> Result<Self, String> {
        let mut this = Self { modules: BTreeMap::new() };
        this.read(&src.join("lib.rs"), src, Vec::new(), Vec::new())?;
        Ok(this)
    }

    /// Reads the file of a module; `folder` holds the files of its children.
    fn read(
        &mut self,
        file: &Path,
        folder: &Path,
        path: ModulePath,
        conditions: Vec<String>,
    ) -> Result<(), String> {
        let named = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
        let text = fs::read_to_string(file).map_err(|error| named(&error))?;
        let items = syn::parse_file(&text).map_err(|error| named(&error))?.items;
        self.add(items, folder, path, conditions)
    }

    fn add(
        &mut self,
        items: Vec<Item>,
        folder: &Path,
        path: ModulePath,
        conditions: Vec<String>,
    ) -> Result<(), String> {
        for item in &items {
            let Item::Mod(module) = item else { continue };
            let name = module.ident.to_string();
            let conditions = [conditions.clone(), conditions_of(&module.attrs)].concat();
            if conditions.iter().any(|condition| condition == "test" || condition == "loom") {
                continue;
            }
            let child = [path.clone(), vec![name.clone()]].concat();
            let inner = folder.join(&name);
            if let Some((_, items)) = &module.content {
                self.add(items.clone(), &inner, child, conditions)?;
            } else if inner.join("mod.rs").is_file() {
                self.read(&inner.join("mod.rs"), &inner, child, conditions)?;
            } else {
                self.read(&folder.join(format!("{name}.rs")), &inner, child, conditions)?;
            }
        }
        self.modules.insert(path, Module { items, conditions });
        Ok(())
    }

    /// What `path`, written in `module`, stands for.
    pub(crate) fn resolve(&self, module: &[String], path: &[String], depth: usize) -> Meaning<'_> {
        let [first, rest @ ..] = path else { return Meaning::Module(module.to_vec()) };
        if depth > CHAIN_MAX {
            return Meaning::Foreign;
        }
        let next = match first.as_str() {
            "crate" => Vec::new(),
            "self" => module.to_vec(),
            "super" => module[..module.len().saturating_sub(1)].to_vec(),
            name => match self.find(module, name, depth) {
                Meaning::Module(found) => found,
                other if rest.is_empty() => return other,
                _ => return Meaning::Foreign,
            },
        };
        self.resolve(&next, rest, depth + 1)
    }

    /// What `name` stands for in `module`.
    fn find(&self, module: &[String], name: &str, depth: usize) -> Meaning<'_> {
        let child = [module, &[name.to_owned()]].concat();
        if self.modules.contains_key(&child) {
            return Meaning::Module(child);
        }
        let Some(items) = self.modules.get(module).map(|module| &module.items) else {
            return Meaning::Foreign;
        };
        if let Some(item) = items.iter().find(|item| name_of(item).as_deref() == Some(name)) {
            return Meaning::Item(module.to_vec(), item);
        }
        let imports: Vec<Import> = items.iter().flat_map(imports_of).collect();
        for import in &imports {
            let itself = import.path == [name];
            if import.name == name && !itself {
                return self.resolve(module, &import.path, depth + 1);
            }
        }
        for import in imports.iter().filter(|import| import.name == "*") {
            if let Meaning::Module(from) = self.resolve(module, &import.path, depth + 1)
                && from != module
                && let found @ (Meaning::Item(..) | Meaning::Module(_)) =
                    self.find(&from, name, depth + 1)
            {
                return found;
            }
        }
        Meaning::Foreign
    }
}

/// The names that an item imports; none if it is no `use`.
pub(crate) fn imports_of(item: &Item) -> Vec<Import> {
    fn walk(tree: &UseTree, before: &[String], found: &mut Vec<Import>) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => walk(&path.tree, &with(&path.ident), found),
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| walk(tree, before, found));
            }
            UseTree::Glob(_) => found.push(Import { path: before.to_vec(), name: "*".to_owned() }),
            UseTree::Name(name) if name.ident == "self" => {
                let own = before.last().cloned().unwrap_or_default();
                found.push(Import { path: before.to_vec(), name: own });
            }
            UseTree::Name(name) => {
                found.push(Import { path: with(&name.ident), name: name.ident.to_string() });
            }
            UseTree::Rename(rename) => {
                found.push(Import { path: with(&rename.ident), name: rename.rename.to_string() });
            }
        }
    }
    let mut found = Vec::new();
    if let Item::Use(item) = item {
        walk(&item.tree, &[], &mut found);
    }
    found
}

/// The name that an item defines, other than a module.
pub(crate) fn name_of(item: &Item) -> Option<String> {
    Some(match item {
        Item::Const(item) => item.ident.to_string(),
        Item::Enum(item) => item.ident.to_string(),
        Item::Fn(item) => item.sig.ident.to_string(),
        Item::Macro(item) => item.ident.as_ref()?.to_string(),
        Item::Static(item) => item.ident.to_string(),
        Item::Struct(item) => item.ident.to_string(),
        Item::Trait(item) => item.ident.to_string(),
        Item::Type(item) => item.ident.to_string(),
        Item::Union(item) => item.ident.to_string(),
        _ => return None,
    })
}

/// The conditions of the `#[cfg(…)]` attributes.
pub(crate) fn conditions_of(attributes: &[Attribute]) -> Vec<String> {
    let conditional = attributes.iter().filter(|attribute| attribute.path().is_ident("cfg"));
    let list = |attribute: &Attribute| Some(attribute.meta.require_list().ok()?.tokens.span());
    conditional.filter_map(list).map(source).collect()
}

/// The source text at `span`, on one line.
pub(crate) fn source(span: Span) -> String {
    let text = span.source_text().unwrap_or_default();
    let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    let line = code.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ");
    // As if it had been written on one line.
    line.replace("( ", "(")
        .replace(", )", ")")
        .replace(" )", ")")
        .replace(", >", ">")
        .replace(", }", " }")
}
