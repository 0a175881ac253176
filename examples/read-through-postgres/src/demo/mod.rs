//! The demonstration: one scene for each strategy, with the loads counted by the database itself.

mod picture;
mod scenes;
mod servers;
mod shared;
mod stampede;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::Error;
use crate::catalogue::{Catalogue, Freshness};
use crate::shared::Shared;
use crate::table::Table;
use servers::Server;

/// Products, of which every category has [`IN_CATEGORY`].
const PRODUCTS: i64 = 2_000;
const IN_CATEGORY: i64 = 200;
/// What a load costs the database, besides reading the rows: some join or aggregate.
const LOAD_COST: Duration = Duration::from_millis(5);

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Readers of one product in the stampede
    #[arg(long, default_value_t = 10_000, value_name = "COUNT",
          value_parser = clap::value_parser!(u32).range(100..=20_000))]
    pub(crate) readers: u32,
    /// Where to draw the stampede; by default beside the program
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

/// The servers of the demonstration.
#[derive(Debug)]
struct Stage {
    postgres: Server,
    redis: Server,
    /// The table, and the prefix of all else that the demonstration makes in both servers.
    name: String,
    /// Loads with [`LOAD_COST`], and counts them.
    table: Table,
}

/// Runs the demonstration.
///
/// # Errors
/// Something could not be started, or a strategy did not do what it is for.
pub(crate) async fn run(
    demo: &Demo,
    url: Option<String>,
    redis: Option<String>,
) -> Result<(), Error> {
    let postgres = Server::postgresql(url).await?;
    println!("database: {}", postgres.description());
    let redis = Server::redis(redis).await?;
    println!("second level: {}", redis.description());
    let name = format!("read_through_demo_{}", std::process::id());
    let mut stage = Stage::new(postgres, redis, &name).await?;
    let outcome = stage.play(demo).await;
    let dropped = stage.drop_everything().await;
    let ended = (stage.postgres.end().await, stage.redis.end().await);
    outcome?;
    dropped?;
    ended.0.and(ended.1)
}

impl Stage {
    async fn new(postgres: Server, redis: Server, name: &str) -> Result<Self, Error> {
        let table = Table::new(postgres.url(), name)?;
        table.create().await?;
        table
            .execute(&format!(
                "CREATE SEQUENCE {name}_loads; SELECT nextval('{name}_loads');
                 INSERT INTO {name} SELECT id, 'product ' || id,
                     'category ' || (id - 1) / {IN_CATEGORY}, 1000 + id
                     FROM generate_series(1, {PRODUCTS}) AS id"
            ))
            .await?;
        // One row even where no product is found, so that each load is counted once.
        let seconds = LOAD_COST.as_secs_f64();
        let table = table.with_load(&format!(
            "SELECT found.id, found.name, found.category, found.cents, found.version
             FROM (SELECT nextval('{name}_loads'), pg_sleep({seconds}) OFFSET 0) AS cost
             LEFT JOIN {name} AS found ON found.id = ANY($1)"
        ));
        Ok(Self { postgres, redis, name: name.to_owned(), table })
    }

    async fn play(&mut self, demo: &Demo) -> Result<(), Error> {
        println!(
            "\n{:<28} {:<24} {:>8} {:>8}   what readers saw",
            "strategy", "variant", "reads", "loads"
        );
        let stampede = stampede::run(self, demo.readers).await?;
        scenes::refresh_ahead(self).await?;
        scenes::stale_while_revalidate(self).await?;
        scenes::negative_caching(self).await?;
        scenes::invalidation_by_tag(self).await?;
        scenes::behind_the_back(self).await?;
        scenes::listener_lost(self).await?;
        shared::run(self).await?;
        scenes::stale_if_error(self).await?;
        println!("\nloads: statements that the database has executed, counted by a sequence");
        let svg = match &demo.svg {
            Some(path) => path.clone(),
            None => std::env::current_exe()?.with_file_name("stampede.svg"),
        };
        std::fs::write(&svg, picture::draw(&stampede))
            .map_err(|error| format!("{}: {error}", svg.display()))?;
        println!("stampede drawn in {}", svg.display());
        Ok(())
    }

    /// Takes the database away, or as much of it as is ours.
    async fn outage(&mut self) -> Result<&'static str, Error> {
        if self.postgres.is_own() {
            self.postgres.crash().await?;
            return Ok("database killed");
        }
        let name = &self.name;
        self.table.execute(&format!("ALTER TABLE {name} RENAME TO {name}_away")).await?;
        Ok("table renamed away")
    }

    async fn end_outage(&mut self) -> Result<(), Error> {
        if self.postgres.is_own() {
            return self.postgres.restart().await;
        }
        let name = &self.name;
        Ok(self.table.execute(&format!("ALTER TABLE {name}_away RENAME TO {name}")).await?)
    }

    async fn drop_everything(&self) -> Result<(), Error> {
        let name = &self.name;
        let statements = format!(
            "DROP TABLE IF EXISTS {name}, {name}_away; DROP SEQUENCE {name}_loads;
             DROP FUNCTION {name}_tell, {name}_next_version"
        );
        Ok(self.table.execute(&statements).await?)
    }

    fn catalogue(&self, freshness: &Freshness) -> Result<Catalogue, Error> {
        Catalogue::new(self.table.clone(), freshness, None)
    }

    /// A catalogue as another process would have it, with Redis between its memory and the table.
    fn shared_catalogue(&self, freshness: &Freshness) -> Result<Catalogue, Error> {
        let shared = Shared::new(self.redis.url(), &self.name)?;
        Catalogue::new(self.table.clone(), freshness, Some(&shared))
    }

    /// Loads that the database has executed since the start.
    async fn loads(&self) -> Result<u64, Error> {
        let count = format!("SELECT last_value FROM {}_loads", self.name);
        Ok(self.table.number(&count).await?.cast_unsigned())
    }
}

/// Only the time to live delays what readers see: nothing is refreshed ahead or answered stale.
fn only_ttl(ttl: Duration) -> Freshness {
    Freshness {
        ttl,
        negative_ttl: Duration::ZERO,
        refresh_after: None,
        stale_while_revalidate: Duration::ZERO,
        stale_if_error: Duration::ZERO,
    }
}

/// One line of the table.
fn show(strategy: &str, variant: &str, reads: u64, loads: u64, saw: &str) {
    println!("{strategy:<28} {variant:<24} {reads:>8} {loads:>8}   {saw}");
}

/// An error unless `holds`: the demonstration shows what it says, or fails.
fn expect(holds: bool, what: &str) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(format!("not as expected: {what}").into()) }
}
