//! The macro that declares a family of stats.

/// Declares a family of stats: a struct that holds one shared block, with an accessor per stat.
///
/// ```
/// use nuncio_base::stats::{Registry, StatsConfig};
///
/// nuncio_base::stat_family! {
///     /// Stats of one cluster.
///     pub struct ClusterStats {
///         counters {
///             upstream_cx_total,
///             ssl_handshake = "ssl.handshake",
///         }
///         gauges { upstream_cx_active }
///         histograms { upstream_rq_time: Milliseconds }
///     }
/// }
///
/// let registry = Registry::new(1, StatsConfig::default());
/// let stats = ClusterStats::new(&registry, "cluster.foo.");
/// stats.upstream_cx_total().inc();
/// stats.ssl_handshake().inc();
/// stats.upstream_cx_active().add(2);
/// stats.upstream_rq_time().record(12);
/// assert_eq!(registry.counter_value("cluster.foo.ssl.handshake"), Some(1));
/// ```
///
/// The sections `counters`, `gauges`, `histograms` may each be left out, but keep this order. A family that begins with
/// `when: used;` is not shown before something was counted in it, or `appear` was called. A stat whose name is not a
/// Rust identifier gives its suffix after `=`. Histograms name their [`Unit`](crate::stats::Unit).
#[macro_export]
macro_rules! stat_family {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $(when: $when:ident;)?
            $(counters { $($c:ident $(= $cs:literal)?),* $(,)? })?
            $(gauges { $($g:ident $(= $gs:literal)?),* $(,)? })?
            $(histograms { $($h:ident $(= $hs:literal)? : $unit:ident),* $(,)? })?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone)]
        $vis struct $name {
            block: ::std::sync::Arc<$crate::stats::Block>,
        }

        #[allow(non_camel_case_types, dead_code, clippy::upper_case_acronyms, clippy::enum_variant_names)]
        const _: () = {
            enum C { $($($c,)*)? __N }
            enum G { $($($g,)*)? __N }
            enum H { $($($h,)*)? __N }

            static DESC: $crate::stats::FamilyDesc = $crate::stats::FamilyDesc {
                counters: &[$($($crate::stat_family!(@name $c $($cs)?),)*)?],
                gauges: &[$($($crate::stat_family!(@name $g $($gs)?),)*)?],
                histograms: &[$($(($crate::stat_family!(@name $h $($hs)?), $crate::stats::Unit::$unit),)*)?],
                when_used: false $(|| $crate::stat_family!(@when $when))?,
            };

            impl $name {
                /// The family under `prefix` (with its final dot). A second call with the same prefix, while a handle
                /// of the first lives, gives the same stats.
                $vis fn new(registry: &$crate::stats::Registry, prefix: &str) -> Self {
                    Self { block: registry.family(&DESC, prefix) }
                }

                /// From now on the family is shown, whether something was counted in it or not.
                $vis fn appear(&self) {
                    self.block.appear();
                }

                $($(
                    #[doc = concat!("Counter `", $crate::stat_family!(@name $c $($cs)?), "`.")]
                    #[inline]
                    $vis fn $c(&self) -> $crate::stats::CounterRef<'_> {
                        self.block.counter(C::$c as usize)
                    }
                )*)?
                $($(
                    #[doc = concat!("Gauge `", $crate::stat_family!(@name $g $($gs)?), "`.")]
                    #[inline]
                    $vis fn $g(&self) -> $crate::stats::GaugeRef<'_> {
                        self.block.gauge(G::$g as usize)
                    }
                )*)?
                $($(
                    #[doc = concat!("Histogram `", $crate::stat_family!(@name $h $($hs)?), "`.")]
                    #[inline]
                    $vis fn $h(&self) -> $crate::stats::HistogramRef<'_> {
                        self.block.histogram(H::$h as usize)
                    }
                )*)?
            }
        };
    };
    (@when used) => { true };
    (@name $ident:ident) => { stringify!($ident) };
    (@name $ident:ident $lit:literal) => { $lit };
}
