//! How large the programs are, held to a record: more instructions take more time, and no clock
//! is needed to count them.
//!
//! After a change that is meant, `SNAPSHOTS=overwrite cargo test -p lb-userspace --lib programs`
//! writes what this kernel says anew. Lines of other kernels stay as they are.

use std::{collections::BTreeMap, env, fmt::Write as _, fs};

use super::load;

/// The record.
const RECORD: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/src/datapath/tests/programs.txt"
);

const HEAD: &str = "\
# How large the programs are that the kernel has loaded: see programs.rs beside this file.
# instructions: after the verifier; bytes: of machine code; verified: instructions that the
# verifier has followed.
# kernel program instructions bytes verified
";

/// What a program comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    /// Instructions that are left after the verifier.
    instructions: u32,
    /// Bytes of machine code; 0 where the kernel has no compiler for it.
    bytes: u32,
    /// Instructions that the verifier has followed, each as often as it did.
    verified: u32,
}

/// Major and minor number of a kernel.
type Kernel = (u32, u32);
/// Programs by name.
type Programs = BTreeMap<String, Extent>;
/// What each kernel makes of them.
type Record = BTreeMap<Kernel, Programs>;

/// How far from the record a program may be, in percent.
#[derive(Clone, Copy, Debug)]
struct Margin {
    /// Instructions and bytes.
    size: u32,
    /// Instructions that the verifier has followed: a small change may have it follow many more.
    verified: u32,
}

/// Of the kernel that the record is of. Compilers differ by less.
const SAME_KERNEL: Margin = Margin {
    size: 5,
    verified: 25,
};
/// Of any other: verifiers differ in what they write into programs in place of calls.
const OTHER_KERNEL: Margin = Margin {
    size: 25,
    verified: 100,
};

/// The kernel that runs.
fn kernel() -> Kernel {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().unwrap().parse().unwrap();
    (number(), number())
}

/// What this kernel makes of the programs.
fn loaded() -> Programs {
    let datapath = load();
    let extent = |(name, program): (&str, &aya::programs::Program)| {
        let info = program.info().unwrap();
        let extent = Extent {
            instructions: info.size_translated().unwrap() / 8,
            bytes: info.size_jitted(),
            verified: info.verified_instruction_count().unwrap(),
        };
        (name.to_owned(), extent)
    };
    datapath.ebpf.programs().map(extent).collect()
}

fn parse(text: &str) -> Record {
    let mut record = Record::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let [kernel, program, instructions, bytes, verified] =
            *line.split_whitespace().collect::<Vec<_>>()
        else {
            panic!("`{line}` is no line of the record");
        };
        let number = |word: &str| word.parse::<u32>().unwrap();
        let (major, minor) = kernel.split_once('.').unwrap();
        let extent = Extent {
            instructions: number(instructions),
            bytes: number(bytes),
            verified: number(verified),
        };
        let programs = record.entry((number(major), number(minor))).or_default();
        programs.insert(program.to_owned(), extent);
    }
    record
}

fn text(record: &Record) -> String {
    let mut text = HEAD.to_owned();
    for ((major, minor), programs) in record {
        for (name, extent) in programs {
            let Extent {
                instructions,
                bytes,
                verified,
            } = extent;
            let _ = writeln!(
                text,
                "{major}.{minor} {name} {instructions} {bytes} {verified}"
            );
        }
    }
    text
}

/// Each way in which the programs are not what was recorded.
fn differences(recorded: &Programs, now: &Programs, margin: Margin) -> Vec<String> {
    let mut differences = Vec::new();
    for name in recorded.keys().filter(|name| !now.contains_key(*name)) {
        differences.push(format!("{name} is gone"));
    }
    for (name, now) in now {
        let Some(then) = recorded.get(name) else {
            differences.push(format!("{name} is new"));
            continue;
        };
        for (what, then, now, percent) in [
            (
                "instructions",
                then.instructions,
                now.instructions,
                margin.size,
            ),
            ("bytes of machine code", then.bytes, now.bytes, margin.size),
            (
                "verified instructions",
                then.verified,
                now.verified,
                margin.verified,
            ),
        ] {
            let apart = u64::from(then.abs_diff(now)) * 100;
            if now != 0 && apart > u64::from(then) * u64::from(percent) {
                differences.push(format!(
                    "{name} has {now} {what}, of which {then} are recorded (within {percent} %)"
                ));
            }
        }
    }
    differences
}

#[test]
fn the_programs_are_as_large_as_recorded() {
    let (kernel, now) = (kernel(), loaded());
    let mut record = parse(&fs::read_to_string(RECORD).unwrap());
    if env::var_os("SNAPSHOTS").is_some_and(|action| action == "overwrite") {
        record.insert(kernel, now);
        fs::write(RECORD, text(&record)).unwrap();
        return;
    }
    let (recorded, margin) = match record.get(&kernel) {
        Some(recorded) => (recorded, SAME_KERNEL),
        None => (record.values().next_back().unwrap(), OTHER_KERNEL),
    };
    let differences = differences(recorded, &now, margin);
    assert!(
        differences.is_empty(),
        "{}\n\
         `cargo xtask bench packet --compare main` tells what that costs; where it is meant, \
         `SNAPSHOTS=overwrite cargo test -p lb-userspace --lib programs` records it",
        differences.join("\n")
    );
}

const EXTENT: Extent = Extent {
    instructions: 1_000,
    bytes: 5_000,
    verified: 100_000,
};

fn one(extent: Extent) -> Programs {
    Programs::from([("lb".to_owned(), extent)])
}

#[test]
fn what_is_recorded_is_read_again() {
    let record = Record::from([((6, 1), one(EXTENT)), ((6, 18), one(EXTENT))]);
    assert_eq!(parse(&text(&record)), record);
}

#[test]
fn what_grows_or_shrinks_beyond_the_margin_is_told() {
    let differ = |extent| differences(&one(EXTENT), &one(extent), SAME_KERNEL);
    let with = |instructions, bytes, verified| Extent {
        instructions,
        bytes,
        verified,
    };
    assert_eq!(differ(with(1_050, 4_750, 125_000)), [""; 0]);
    assert_eq!(
        differ(with(1_051, 5_000, 100_000)),
        ["lb has 1051 instructions, of which 1000 are recorded (within 5 %)"]
    );
    assert_eq!(differ(with(1_000, 4_749, 100_000)).len(), 1);
    assert_eq!(differ(with(949, 5_251, 125_001)).len(), 3);
    // A kernel that does not compile has no machine code to compare.
    assert_eq!(differ(with(1_000, 0, 100_000)), [""; 0]);
    assert_eq!(
        differences(&one(EXTENT), &Programs::new(), SAME_KERNEL),
        ["lb is gone"]
    );
    assert_eq!(
        differences(&Programs::new(), &one(EXTENT), SAME_KERNEL),
        ["lb is new"]
    );
}
