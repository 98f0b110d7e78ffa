//! The simulated disk keeps what a disk keeps.

use super::*;

fn disk() -> SimMedium {
    SimMedium::new(1, 1 << 20)
}

#[test]
fn what_was_synced_survives_every_crash_and_the_rest_only_some() {
    let mut kept = 0;
    let mut torn = 0;
    for seed in 0..64 {
        let disk = disk();
        let file = disk.open("f", OpenMode::Create).expect("open");
        disk.write_at(&file, 0, &[1; 2048]).expect("write");
        disk.sync(&file).expect("sync");
        disk.sync_dir("").expect("sync");
        disk.write_at(&file, 0, &[2; 2048]).expect("write");
        let after = disk.crash(seed);
        assert!(disk.sync(&file).is_err(), "the old disk is gone");
        let file = after.open("f", OpenMode::Read).expect("a durable name");
        let mut data = [0; 2048];
        assert_eq!(after.read_at(&file, 0, &mut data).expect("read"), 2048);
        assert!(
            data.chunks(512)
                .all(|sector| sector == [1; 512] || sector == [2; 512])
        );
        kept += u32::from(data == [2; 2048]);
        torn += u32::from(data.contains(&1) && data.contains(&2));
    }
    assert!(kept > 0 && torn > 0);
}

#[test]
fn a_name_without_a_sync_of_its_directory_may_vanish() {
    let mut vanished = 0;
    for seed in 0..32 {
        let disk = disk();
        let file = disk.open("f", OpenMode::Create).expect("open");
        disk.sync(&file).expect("sync");
        vanished += u32::from(disk.crash(seed).open("f", OpenMode::Read).is_err());
    }
    assert!(vanished > 0 && vanished < 32);
}

#[test]
fn a_full_disk_says_so() {
    let disk = SimMedium::new(1, 4096);
    let file = disk.open("f", OpenMode::Create).expect("open");
    let error = disk.write_at(&file, 0, &[1; 8192]).expect_err("no room");
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    disk.write_at(&file, 0, &[1; 4096]).expect("fits");
    disk.set_len(&file, 0).expect("cut");
    disk.write_at(&file, 0, &[1; 4096]).expect("fits again");
}
