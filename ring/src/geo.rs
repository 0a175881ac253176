//! Geographic partitioning: a region chooses among its own nodes, and names where to go when it
//! cannot.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::error::GeoError;
use crate::owners::{Degraded, MAX_REPLICAS, Owners};
use crate::partitioner::Partitioner;

/// The most regions of one map.
pub const MAX_REGIONS: usize = 4096;

/// One region: its own partitioner and where its keys go when it is down or too small.
#[derive(Clone, Debug)]
pub struct Region {
    name: String,
    partitioner: Arc<dyn Partitioner>,
    fallback: Vec<String>,
}

impl Region {
    /// A region without fallback.
    pub fn new(name: impl Into<String>, partitioner: Arc<dyn Partitioner>) -> Self {
        Self { name: name.into(), partitioner, fallback: Vec::new() }
    }

    /// Adds a region to fall back to, after those added before.
    #[must_use]
    pub fn or_else(mut self, region: impl Into<String>) -> Self {
        self.fallback.push(region.into());
        self
    }
}

/// Regions, each with a sub-ring of any kind and an order of fallbacks.
///
/// # Example
/// ```
/// use std::sync::Arc;
/// use voussoir_ring::geo::{Geo, Region};
/// use voussoir_ring::{Degraded, HashRing, Node, Topology};
/// let ring = |ids: std::ops::Range<u64>| -> Arc<HashRing> {
///     Arc::new(HashRing::new(&Topology::new(1, ids.map(Node::new)).unwrap()).unwrap())
/// };
/// let geo = Geo::new([
///     Region::new("eu", ring(0..2)).or_else("us"),
///     Region::new("us", ring(10..20)).or_else("eu"),
/// ])?;
/// let owners = geo.owners("eu", b"key", 3)?;
/// assert!(owners[0] < 10 && owners[1] < 10 && owners[2] >= 10);
/// assert_eq!(owners.degraded(), Some(Degraded::OutsideRegion { inside: 2, outside: 1 }));
/// # Ok::<(), voussoir_ring::GeoError>(())
/// ```
#[derive(Clone)]
pub struct Geo {
    names: HashMap<String, usize>,
    regions: Vec<Resolved>,
}

#[derive(Clone)]
struct Resolved {
    name: String,
    partitioner: Arc<dyn Partitioner>,
    /// The region itself, then its fallbacks.
    order: Vec<usize>,
    down: bool,
}

impl Geo {
    /// A map of these regions.
    ///
    /// # Errors
    /// [`GeoError::NoRegions`], [`GeoError::DuplicateRegion`], [`GeoError::TooManyRegions`], and
    /// [`GeoError::UnknownRegion`] for a fallback that is not a region.
    pub fn new(regions: impl IntoIterator<Item = Region>) -> Result<Self, GeoError> {
        let given: Vec<Region> = regions.into_iter().take(MAX_REGIONS + 1).collect();
        match given.len() {
            0 => return Err(GeoError::NoRegions),
            many if many > MAX_REGIONS => return Err(GeoError::TooManyRegions(many)),
            _ => {}
        }
        let mut names = HashMap::new();
        for (number, region) in given.iter().enumerate() {
            if names.insert(region.name.clone(), number).is_some() {
                return Err(GeoError::DuplicateRegion(region.name.clone()));
            }
        }
        let resolve = |(number, region): (usize, Region)| {
            let mut order = vec![number];
            for name in region.fallback {
                let next = *names.get(&name).ok_or(GeoError::UnknownRegion(name))?;
                if !order.contains(&next) {
                    order.push(next);
                }
            }
            let Region { name, partitioner, .. } = region;
            Ok(Resolved { name, partitioner, order, down: false })
        };
        let regions = given.into_iter().enumerate().map(resolve).collect::<Result<_, _>>()?;
        Ok(Self { names, regions })
    }

    /// A copy of the map in which `region` is marked as down (`true`) or up (`false`), for
    /// [`Published::publish`](crate::Published::publish).
    ///
    /// # Errors
    /// [`GeoError::UnknownRegion`].
    pub fn with_down(&self, region: &str, down: bool) -> Result<Self, GeoError> {
        let number = self.number(region)?;
        let mut map = self.clone();
        map.regions[number].down = down;
        Ok(map)
    }

    /// The owner of a key in a region: a node of the first region of its order that is not down.
    ///
    /// # Errors
    /// [`GeoError::UnknownRegion`], [`GeoError::AllDown`].
    pub fn owner(&self, region: &str, key: &[u8]) -> Result<u64, GeoError> {
        let number = self.number(region)?;
        self.up(number)
            .next()
            .map(|(_, region)| region.partitioner.owner(key))
            .ok_or_else(|| GeoError::AllDown(region.to_owned()))
    }

    /// The preference list of a key in a region: as many nodes of the region as it has, then nodes
    /// of the fallbacks in their order, with [`Degraded::OutsideRegion`] saying so.
    ///
    /// # Errors
    /// [`GeoError::UnknownRegion`], [`GeoError::AllDown`].
    pub fn owners(&self, region: &str, key: &[u8], n: usize) -> Result<Owners, GeoError> {
        let home = self.number(region)?;
        let (mut owners, mut inside, mut any) = (Owners::empty(), 0, false);
        let mut first_warning = None;
        for (number, place) in self.up(home) {
            any = true;
            let missing = n.min(MAX_REPLICAS) - owners.len();
            let found = fresh(&*place.partitioner, key, &owners, missing);
            for &id in found.iter().filter(|id| !owners.contains(id)).collect::<Vec<_>>() {
                owners.push(id);
            }
            match found.degraded() {
                Some(Degraded::FewerNodes { .. }) | None => {}
                Some(shared) => {
                    first_warning.get_or_insert(shared);
                }
            }
            if number == home {
                inside = owners.len();
            }
            if owners.len() >= n.min(MAX_REPLICAS) {
                break;
            }
        }
        if !any {
            return Err(GeoError::AllDown(region.to_owned()));
        }
        if owners.len() < n {
            owners.warn(Degraded::FewerNodes { wanted: n, found: owners.len() });
        }
        let outside = owners.len() - inside;
        if outside > 0 {
            owners.warn(Degraded::OutsideRegion { inside, outside });
        }
        if let Some(shared) = first_warning {
            owners.warn(shared);
        }
        Ok(owners)
    }

    fn number(&self, region: &str) -> Result<usize, GeoError> {
        let known = self.names.get(region).copied();
        known.ok_or_else(|| GeoError::UnknownRegion(region.to_owned()))
    }

    fn up(&self, home: usize) -> impl Iterator<Item = (usize, &Resolved)> {
        let order = self.regions[home].order.iter();
        order.map(|&number| (number, &self.regions[number])).filter(|(_, region)| !region.down)
    }
}

/// Asks the region for more and more nodes until `missing` of them are not yet in `owners`, or it
/// has no more.
fn fresh(partitioner: &dyn Partitioner, key: &[u8], owners: &Owners, missing: usize) -> Owners {
    let mut wanted = missing;
    // Ends: `wanted` grows up to MAX_REPLICAS.
    loop {
        let found = partitioner.owners(key, wanted);
        let new = found.iter().filter(|id| !owners.contains(id)).count();
        if new >= missing || found.len() < wanted || wanted == MAX_REPLICAS {
            return found;
        }
        wanted += 1;
    }
}

impl fmt::Debug for Geo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.regions.iter().map(|region| (&region.name, !region.down));
        f.debug_map().entries(names).finish()
    }
}

/// Tells the region of a key.
pub trait Locate: Send + Sync + fmt::Debug {
    /// The name of the key's region, or `None` when the key names none.
    fn region<'k>(&self, key: &'k [u8]) -> Option<&'k str>;
}

/// The region is what stands before the first separator of the key: `eu` in `eu/user:42`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix(
    /// The separator.
    pub u8,
);

impl Locate for Prefix {
    fn region<'k>(&self, key: &'k [u8]) -> Option<&'k str> {
        let end = key.iter().position(|&byte| byte == self.0)?;
        std::str::from_utf8(&key[..end]).ok()
    }
}

/// Geography first, then the region's own algorithm, behind the one trait. Keys of no known region
/// and keys whose regions are all down go to the default region, even when that is marked as down:
/// a partitioner always answers. Owners that come from the default region instead of the key's own
/// carry no [`Degraded::OutsideRegion`] for that.
#[derive(Clone, Debug)]
pub struct Composite {
    geo: Geo,
    locate: Arc<dyn Locate>,
    default: String,
}

impl Composite {
    /// Geography by `locate`, with a region for keys that have none.
    ///
    /// # Errors
    /// [`GeoError::UnknownRegion`] for the default.
    pub fn new(geo: Geo, locate: Arc<dyn Locate>, default: &str) -> Result<Self, GeoError> {
        geo.number(default)?;
        Ok(Self { geo, locate, default: default.to_owned() })
    }

    /// The default region's nodes, whatever is marked as down.
    fn resort(&self) -> &dyn Partitioner {
        let number = self.geo.names.get(&self.default).copied().unwrap_or_default();
        &*self.geo.regions[number].partitioner
    }

    fn home<'k>(&'k self, key: &'k [u8]) -> &'k str {
        let named = self.locate.region(key).filter(|name| self.geo.names.contains_key(*name));
        named.unwrap_or(&self.default)
    }
}

impl Partitioner for Composite {
    fn owner(&self, key: &[u8]) -> u64 {
        let found = self.geo.owner(self.home(key), key);
        found
            .or_else(|_| self.geo.owner(&self.default, key))
            .unwrap_or_else(|_| self.resort().owner(key))
    }

    fn owners(&self, key: &[u8], n: usize) -> Owners {
        let found = self.geo.owners(self.home(key), key, n);
        found
            .or_else(|_| self.geo.owners(&self.default, key, n))
            .unwrap_or_else(|_| self.resort().owners(key, n))
    }
}
