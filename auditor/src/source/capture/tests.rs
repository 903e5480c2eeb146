use auditor_common::endpoint::Endpoint;
use auditor_common::event::{EGRESS, KIND_EXIT, KIND_PACKET, Task};

use super::*;

fn packet(time: u64, payload: &[u8]) -> Packet {
    Packet {
        header: EventHeader { kind: KIND_PACKET, share: 0, time, session: 7 },
        cookie: 0x1234,
        remote: Endpoint::v4([10, 0, 0, 1], 5432),
        sequence: 1,
        acknowledgement: 2,
        length: u32::try_from(payload.len()).unwrap(),
        captured: u32::try_from(payload.len()).unwrap(),
        flags: 0x18,
        direction: EGRESS,
        _padding: [0; 2],
    }
}

fn exit(time: u64) -> Exit {
    let task = Task { pid: 1, tid: 1, uid: 0, gid: 0, comm: *b"psql\0\0\0\0\0\0\0\0\0\0\0\0" };
    Exit { header: EventHeader { kind: KIND_EXIT, share: 0, time, session: 7 }, task }
}

fn session() -> Session {
    let agent = Agent { name: "a".to_owned(), labels: BTreeMap::new(), identity: None };
    Session { id: "7".to_owned(), agent, task: Some("t".to_owned()), policy: "p".to_owned() }
}

/// A session, a packet and an exit, and the offset of each frame's end.
fn sample() -> (Vec<u8>, Vec<usize>) {
    let header = Header {
        boottime_to_utc: 42,
        boot_id: "4f2b8c1a-93d7-4e5f-a1b6-0c8d7e9f1a2b".to_owned(),
        overload: Overload::RecordLoss,
        fail_mode: FailMode::Open,
    };
    let mut bytes = header.encode().to_vec();
    let mut ends = vec![bytes.len()];
    write_session(7, &session(), &mut bytes);
    ends.push(bytes.len());
    write_event(&Event::Packet(packet(5, b"select"), b"select"), &mut bytes);
    ends.push(bytes.len());
    write_event(&Event::Exit(exit(6)), &mut bytes);
    ends.push(bytes.len());
    (bytes, ends)
}

/// Everything that a capture gives: a word for each event and session, and how it ended.
fn read(bytes: &[u8]) -> (Vec<String>, Result<(), CaptureError>) {
    let mut seen = Vec::new();
    let mut capture = match Capture::open(bytes) {
        Ok(capture) => capture,
        Err(error) => return (seen, Err(error)),
    };
    loop {
        let drained = capture.drain(1, &mut |event| {
            seen.push(match event {
                Event::Packet(packet, payload) => {
                    format!("packet {} {}", packet.cookie, payload.escape_ascii())
                }
                Event::Exit(exit) => format!("exit {} at {}", exit.task.pid, event.time().0),
                _ => "another".to_owned(),
            });
        });
        let before = seen.len();
        seen.extend(capture.take_sessions().map(|(number, told)| {
            assert_eq!(told, session());
            format!("session {number}")
        }));
        match drained {
            Err(error) => return (seen, Err(error)),
            Ok(0) if seen.len() == before => return (seen, Ok(())),
            Ok(_) => {}
        }
    }
}

fn plain_header() -> Header {
    Header {
        boottime_to_utc: 0,
        boot_id: String::new(),
        overload: Overload::Backpressure,
        fail_mode: FailMode::Closed,
    }
}

#[test]
fn what_was_written_is_read() {
    let (bytes, _) = sample();
    let (seen, end) = read(&bytes);
    end.unwrap();
    assert_eq!(seen, ["session 7", "packet 4660 select", "exit 1 at 6"]);
    let header = Capture::open(&bytes[..]).unwrap().header().clone();
    assert_eq!(header.boot_id, "4f2b8c1a-93d7-4e5f-a1b6-0c8d7e9f1a2b");
    assert_eq!(header.clock().utc(Boottime(1)).0, 43);
}

#[test]
fn records_are_as_the_kernel_wrote_them() {
    let mut bytes = Vec::new();
    Event::Packet(packet(5, b"abc"), b"abc").encode(&mut bytes);
    assert_eq!((bytes.len(), &bytes[72..]), (75, &b"abc"[..]));
    assert_eq!((bytes[0], bytes[8], bytes[16], bytes[64]), (1, 5, 7, 3), "kind, time, session, captured");
}

#[test]
fn a_cut_file_gives_what_is_whole_and_says_where_it_ends() {
    let (bytes, ends) = sample();
    for length in 0..=bytes.len() {
        let (seen, end) = read(&bytes[..length]);
        let whole = ends.iter().filter(|end| **end <= length).count();
        assert_eq!(seen.len(), whole.saturating_sub(1), "{length} bytes");
        match end {
            Ok(()) => assert!(ends.contains(&length), "{length} bytes"),
            Err(CaptureError::NotACapture) => assert!(length < HEADER_BYTES),
            Err(CaptureError::Truncated { at, begins }) => {
                assert_eq!((at, begins), (length as u64, ends[whole - 1] as u64));
            }
            Err(error) => panic!("{length} bytes: {error}"),
        }
    }
}

#[test]
fn a_damaged_file_is_never_more_than_an_error() {
    let (bytes, ends) = sample();
    for place in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[place] ^= 1 << bit;
            // Whatever comes of it: it ends, and without taking memory for what is not there.
            let (seen, end) = read_leniently(&damaged);
            assert!(seen <= 4);
            match place {
                0..8 => assert!(matches!(end, Err(CaptureError::NotACapture))),
                8..16 => assert!(matches!(end, Err(CaptureError::OtherVersion { .. }))),
                _ if (4..8).any(|byte| ends[..3].iter().any(|end| end + byte == place)) => {
                    assert!(end.is_err(), "the frame's kind, byte {place}, bit {bit}");
                }
                _ => {}
            }
        }
    }
}

fn read_leniently(bytes: &[u8]) -> (usize, Result<(), CaptureError>) {
    let mut capture = match Capture::open(bytes) {
        Ok(capture) => capture,
        Err(error) => return (0, Err(error)),
    };
    let mut seen = 0;
    loop {
        let drained = capture.drain(usize::MAX, &mut |_| seen += 1);
        let sessions = capture.take_sessions().count();
        match drained {
            Err(error) => return (seen, Err(error)),
            Ok(0) if sessions == 0 => return (seen, Ok(())),
            Ok(_) => {}
        }
    }
}

#[test]
fn a_capture_ends_with_the_last_whole_frame_before_its_limit() {
    let (bytes, ends) = sample();
    let header = plain_header();
    for limit in 0..=bytes.len() {
        let mut file = Vec::new();
        let mut writer = Writer::begin(&mut file, &header, limit as u64).unwrap();
        let written = writer.append(&bytes[HEADER_BYTES..]).unwrap();
        assert_eq!(written == Written::Whole, limit == bytes.len(), "{limit}");
        let expected = ends.iter().rev().find(|end| **end <= limit).copied().unwrap_or(HEADER_BYTES);
        assert_eq!(file.len(), expected, "{limit}");
        read(&file).1.unwrap();
    }
}

#[test]
fn long_bodies_and_short_reads_make_no_difference() {
    /// Gives a few bytes at a time.
    struct Trickle<'a>(&'a [u8]);
    impl Read for Trickle<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let length = self.0.len().min(out.len()).min(7);
            let (now, later) = self.0.split_at(length);
            out[..length].copy_from_slice(now);
            self.0 = later;
            Ok(length)
        }
    }
    let payload = vec![b'x'; 32 << 10];
    let mut bytes = plain_header().encode().to_vec();
    for time in 0..100 {
        write_event(&Event::Packet(packet(time, &payload), &payload), &mut bytes);
    }
    let mut capture = Capture::open(Trickle(&bytes)).unwrap();
    let mut times = Vec::new();
    let given = capture.drain(usize::MAX, &mut |event| {
        assert!(matches!(event, Event::Packet(_, seen) if seen == payload));
        times.push(event.time().0);
    });
    assert_eq!((given.unwrap(), times), (100, (0..100).collect()));
}
