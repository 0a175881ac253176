//! The lines of a crate's public interface.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use syn::spanned::Spanned;
use syn::{Attribute, Field, Fields, ImplItem, Item, ItemImpl, TraitItem, Type, Visibility};

use super::modules::{Crate, Meaning, ModulePath, conditions_of, imports_of, name_of, source};

/// The public interface, sorted, one item a line.
pub(crate) fn of(library: &Crate) -> String {
    let mut lines = Lines { library, public: BTreeMap::new(), found: BTreeSet::new() };
    lines.modules();
    lines.impls();
    lines.found.into_iter().map(|line| line + "\n").collect()
}

struct Lines<'a> {
    library: &'a Crate,
    /// Public path of each public item, by module and name.
    public: BTreeMap<(ModulePath, String), String>,
    /// The finished lines.
    found: BTreeSet<String>,
}

/// What a module makes public.
struct Export<'a> {
    name: String,
    meaning: Meaning<'a>,
    /// The path in another crate, where it is of one.
    foreign: String,
    conditions: Vec<String>,
}

impl<'a> Lines<'a> {
    /// Goes through the public modules, outer ones first. Ends because a path that goes through a
    /// module twice is left out.
    fn modules(&mut self) {
        let mut open = VecDeque::from([(Vec::new(), ModulePath::new(), Vec::new())]);
        while let Some((path, module, above)) = open.pop_front() {
            if above.contains(&module) {
                continue;
            }
            let above = [above, vec![module.clone()]].concat();
            for export in self.exports(&module, 0) {
                let public: Vec<String> = [path.clone(), vec![export.name]].concat();
                match export.meaning {
                    Meaning::Module(inner) => open.push_back((public, inner, above.clone())),
                    Meaning::Item(of, item) => {
                        self.item(&public.join("::"), of, item, &export.conditions);
                    }
                    Meaning::Foreign => {
                        let text = format!("use {}", export.foreign);
                        self.add(&public.join("::"), &text, &export.conditions);
                    }
                }
            }
        }
        for item in self.library.modules.values().flat_map(|module| &module.items) {
            let exported =
                |attrs: &[Attribute]| attrs.iter().any(|a| a.path().is_ident("macro_export"));
            if let (Item::Macro(item), Some(name)) = (item, name_of(item))
                && exported(&item.attrs)
            {
                self.add(&format!("{name}!"), "macro_rules", &conditions_of(&item.attrs));
            }
        }
    }

    fn exports(&self, module: &ModulePath, depth: usize) -> Vec<Export<'a>> {
        let library = self.library;
        let Some(known) = library.modules.get(module).filter(|_| depth < 10) else {
            return Vec::new();
        };
        let mut exports = Vec::new();
        for item in &known.items {
            let (attrs, public) = header(item);
            if !public || is_hidden(attrs) {
                continue;
            }
            let conditions = [known.conditions.clone(), conditions_of(attrs)].concat();
            if let Item::Mod(item) = item {
                let name = item.ident.to_string();
                let meaning = library.resolve(module, &["self".to_owned(), name.clone()], 0);
                exports.push(Export { name, meaning, foreign: String::new(), conditions });
                continue;
            }
            if let Some(name) = name_of(item) {
                let meaning = Meaning::Item(module.clone(), item);
                let conditions = conditions.clone();
                exports.push(Export { name, meaning, foreign: String::new(), conditions });
            }
            for import in imports_of(item) {
                let meaning = library.resolve(module, &import.path, 0);
                match (import.name.as_str(), meaning) {
                    ("*", Meaning::Module(from)) => {
                        let all = self.exports(&from, depth + 1).into_iter();
                        exports.extend(all.map(|mut export| {
                            export.conditions.extend(conditions.clone());
                            export
                        }));
                    }
                    (_, meaning) => {
                        let (name, foreign) = (import.name, import.path.join("::"));
                        let conditions = conditions.clone();
                        exports.push(Export { name, meaning, foreign, conditions });
                    }
                }
            }
        }
        exports
    }

    /// The lines of an item under its public path; an alias if it has one already.
    fn item(&mut self, path: &str, module: ModulePath, item: &Item, conditions: &[String]) {
        let Some(name) = name_of(item) else { return };
        let mut all = conditions.to_vec();
        all.extend(self.library.modules[&module].conditions.clone());
        all.extend(conditions_of(header(item).0));
        let key = (module, name);
        if let Some(first) = self.public.get(&key).filter(|first| *first != path) {
            let text = format!("use {first}");
            return self.add(path, &text, &all);
        }
        self.public.insert(key, path.to_owned());
        let add = |this: &mut Self, text: &str| this.add(path, text, &all);
        match item {
            Item::Fn(item) => add(self, &source(item.sig.span())),
            Item::Const(item) => add(self, &format!("const {}", source(item.ty.span()))),
            Item::Static(item) => add(self, &format!("static {}", source(item.ty.span()))),
            Item::Type(item) => add(self, &source(item.ty.span())),
            Item::Struct(item) => {
                let generics = source(item.generics.span());
                add(self, &format!("{}struct{generics}", marks(&item.attrs)));
                self.fields(path, &item.fields, &all);
            }
            Item::Enum(item) => {
                let generics = source(item.generics.span());
                add(self, &format!("{}enum{generics}", marks(&item.attrs)));
                for variant in &item.variants {
                    let inner = format!("{path}::{}", variant.ident);
                    let fields = source(variant.fields.span());
                    let text = format!("{}variant {fields}", marks(&variant.attrs));
                    self.add(&inner, text.trim_end(), &all);
                }
            }
            Item::Trait(item) => {
                let above = source(item.supertraits.span());
                let generics = source(item.generics.span());
                add(self, format!("trait{generics} {above}").trim_end());
                for inner in &item.items {
                    self.trait_item(path, inner, &all);
                }
            }
            _ => {}
        }
    }

    fn fields(&mut self, path: &str, fields: &Fields, conditions: &[String]) {
        let is_public = |field: &&Field| matches!(field.vis, Visibility::Public(_));
        for (number, field) in fields.iter().enumerate().filter(|(_, field)| is_public(field)) {
            let name = field.ident.as_ref().map_or(number.to_string(), ToString::to_string);
            let text = source(field.ty.span());
            self.add(&format!("{path}.{name}"), &text, conditions);
        }
    }

    fn trait_item(&mut self, path: &str, item: &TraitItem, conditions: &[String]) {
        let (name, text) = match item {
            TraitItem::Fn(item) => {
                let provided = if item.default.is_some() { " { … }" } else { "" };
                (&item.sig.ident, format!("{}{provided}", source(item.sig.span())))
            }
            TraitItem::Type(item) => (&item.ident, "associated type".to_owned()),
            TraitItem::Const(item) => (&item.ident, format!("const {}", source(item.ty.span()))),
            _ => return,
        };
        self.add(&format!("{path}::{name}"), &text, conditions);
    }

    /// The methods of public types, and the traits that they implement.
    fn impls(&mut self) {
        let library = self.library;
        for (module, known) in &library.modules {
            for item in &known.items {
                let Item::Impl(item) = item else { continue };
                let conditions = [known.conditions.clone(), conditions_of(&item.attrs)].concat();
                if !conditions.iter().any(|condition| condition == "test") {
                    self.implementation(module, item, &conditions);
                }
            }
        }
    }

    fn implementation(&mut self, module: &ModulePath, item: &ItemImpl, conditions: &[String]) {
        let path_of = |this: &Self, path: &syn::Path| {
            let names: Vec<String> = path.segments.iter().map(|s| s.ident.to_string()).collect();
            match this.library.resolve(module, &names, 0) {
                Meaning::Item(of, item) => this.public.get(&(of, name_of(item)?)).cloned(),
                _ => None,
            }
        };
        let of_type = match &*item.self_ty {
            Type::Path(path) => path_of(self, &path.path),
            _ => None,
        };
        if let Some((path, _)) = &item.trait_ {
            if of_type.is_none() && path_of(self, path).is_none() {
                return;
            }
            let (generics, of) = (source(item.generics.span()), source(item.self_ty.span()));
            let text = format!("impl{generics} {} for {of}", source(path.span()));
            return self.add(&text, "", conditions);
        }
        let Some(of_type) = of_type else { return };
        for inner in &item.items {
            let (attrs, public, name, text) = match inner {
                ImplItem::Fn(f) => (&f.attrs, &f.vis, &f.sig.ident, source(f.sig.span())),
                ImplItem::Const(c) => {
                    (&c.attrs, &c.vis, &c.ident, format!("const {}", source(c.ty.span())))
                }
                _ => continue,
            };
            if matches!(public, Visibility::Public(_)) && !is_hidden(attrs) {
                let conditions = [conditions.to_vec(), conditions_of(attrs)].concat();
                self.add(&format!("{of_type}::{name}"), &text, &conditions);
            }
        }
    }

    fn add(&mut self, path: &str, text: &str, conditions: &[String]) {
        let conditions: BTreeSet<&String> = conditions.iter().collect();
        let conditions: Vec<String> = conditions.iter().map(|c| format!(" [{c}]")).collect();
        let colon = if text.is_empty() { "" } else { ": " };
        let line = format!("{path}{colon}{text}{}", conditions.concat());
        self.found.insert(line);
    }
}

/// The attributes of an item, and whether it is public.
fn header(item: &Item) -> (&[Attribute], bool) {
    let (attrs, vis) = match item {
        Item::Const(item) => (&item.attrs, &item.vis),
        Item::Enum(item) => (&item.attrs, &item.vis),
        Item::Fn(item) => (&item.attrs, &item.vis),
        Item::Mod(item) => (&item.attrs, &item.vis),
        Item::Static(item) => (&item.attrs, &item.vis),
        Item::Struct(item) => (&item.attrs, &item.vis),
        Item::Trait(item) => (&item.attrs, &item.vis),
        Item::Type(item) => (&item.attrs, &item.vis),
        Item::Use(item) => (&item.attrs, &item.vis),
        _ => return (&[], false),
    };
    (attrs, matches!(vis, Visibility::Public(_)))
}

fn is_hidden(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|a| a.path().is_ident("doc") && source(a.span()).contains("(hidden)"))
}

/// `#[non_exhaustive]` and derived traits, which are part of the interface.
fn marks(attributes: &[Attribute]) -> String {
    let counted =
        |a: &&Attribute| a.path().is_ident("non_exhaustive") || a.path().is_ident("derive");
    attributes.iter().filter(counted).map(|attribute| source(attribute.span()) + " ").collect()
}
