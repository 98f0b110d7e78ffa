//! DUR-2, FO-1, FO-2, RS-5 with real processes: daemons die by SIGKILL at any moment under a
//! writer that remembers what was confirmed. It sees pauses and no error; nothing confirmed is
//! ever missing; both bricks hold the same.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use cairn_lab::is_in_sync;
use cairn_tests::{Mounted, Random, Writer, all_equal, missing, setting};

const VOLUME: &str = "v1";
const IN_SYNC_WITHIN: Duration = Duration::from_secs(60);

#[test]
fn nothing_confirmed_is_missing_after_daemons_die_at_any_moment() -> anyhow::Result<()> {
    let rounds = setting("CAIRN_KILL_ROUNDS", 50);
    let mut random = Random::from_env("CAIRN_KILL_SEED");
    let Some(Mounted {
        dir: _dir,
        mut lab,
        mount,
    }) = Mounted::new(VOLUME, 2)?
    else {
        return Ok(());
    };
    let mut kills = [0_u64; 3];
    let mut writer = Writer::start(&mount, 7)?;
    let mut generation = 0;
    for round in 0..rounds {
        std::thread::sleep(Duration::from_millis(random.below(250)));
        let victims: &[usize] = match random.below(5) {
            0 | 1 => &[0],
            2 | 3 => &[1],
            _ => &[0, 1],
        };
        kills[if victims.len() == 2 { 2 } else { victims[0] }] += 1;
        for node in victims {
            lab.kill(*node);
        }
        std::thread::sleep(Duration::from_millis(random.below(100)));
        for node in victims {
            lab.start(*node)?;
        }
        lab.wait_volume(0, VOLUME, "in sync", IN_SYNC_WITHIN, is_in_sync)?;
        let confirmed = writer.confirmed();
        if round % 10 == 9 || round + 1 == rounds {
            // The files so far are complete; the next ones go elsewhere, so that a round's check
            // does not grow without end.
            let base = if generation == 0 {
                mount.clone()
            } else {
                mount.join(format!("g{generation}"))
            };
            let confirmed = writer.finish()?;
            let wrong = missing(&base, &confirmed, false)?;
            assert!(wrong.is_empty(), "round {round}: {wrong:?}");
            all_equal(&lab, 0, VOLUME).with_context(|| format!("round {round}"))?;
            generation += 1;
            writer = Writer::start(&mount.join(format!("g{generation}")), 7)?;
        } else {
            let before = Instant::now();
            while writer.confirmed().appended <= confirmed.appended {
                let waited = before.elapsed();
                assert!(
                    waited < Duration::from_secs(60),
                    "round {round}: the writer does not go on"
                );
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    writer.finish()?;
    println!(
        "{rounds} rounds: primary killed {}, secondary killed {}, both {}; nothing lost",
        kills[0], kills[1], kills[2]
    );
    lab.finish()?;
    Ok(())
}
