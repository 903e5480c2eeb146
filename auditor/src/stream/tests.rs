//! A collector that checks the tiling on every delivery, examples, and the properties.

use proptest::prelude::*;

use super::*;

/// What was delivered: `Some` a byte, `None` a lost one.
#[derive(Default)]
struct Collector {
    stream: Vec<Option<u8>>,
    gaps: Vec<(u64, u64)>,
    skipped: Vec<(u64, u64)>,
    conflicts: Vec<(u64, u64)>,
}

impl Collector {
    fn take(&mut self, delivery: Delivery<'_>) {
        match delivery {
            Delivery::Bytes { bytes, .. } => {
                assert!(!bytes.is_empty());
                self.stream.extend(bytes.iter().copied().map(Some));
            }
            Delivery::Skipped { skip, .. } => {
                assert!(skip.length > 0);
                self.skipped.push((self.stream.len() as u64, u64::from(skip.length)));
                self.stream.resize(self.stream.len() + skip.length as usize, None);
            }
            Delivery::Gap { offset, length } => {
                assert!(length > 0);
                assert_eq!(offset, self.stream.len() as u64, "a gap lies where the stream has come to");
                assert!(length < 1 << 32, "the collector keeps lost bytes one by one");
                self.gaps.push((offset, length));
                self.stream.resize(self.stream.len() + length as usize, None);
            }
            Delivery::Conflict { offset, length } => {
                assert!(length > 0);
                self.conflicts.push((offset, length));
            }
        }
    }

    fn text(&self) -> String {
        self.stream.iter().map(|byte| byte.map_or('?', char::from)).collect()
    }
}

/// A stream and what it delivered, with sequence numbers relative to `isn`.
struct Fixture {
    half: HalfStream,
    collector: Collector,
    isn: u32,
}

impl Fixture {
    fn new(isn: u32) -> Self {
        Self { half: HalfStream::new(Limits::default()), collector: Collector::default(), isn }
    }

    fn started() -> Self {
        let mut fixture = Self::new(u32::MAX - 4);
        fixture.half.start(fixture.isn, &mut |_| panic!("nothing to deliver yet"));
        fixture
    }

    fn cut(&mut self, offset: u32, payload: &str, length: u32, flags: u8) -> &mut Self {
        let segment = Segment {
            sequence: self.isn.wrapping_add(offset),
            flags,
            payload: payload.as_bytes(),
            length,
            at: Boottime(0),
        };
        self.half.segment(&segment, &mut |delivery| self.collector.take(delivery));
        self
    }

    fn send(&mut self, offset: u32, payload: &str) -> &mut Self {
        self.cut(offset, payload, 0, 0)
    }

    fn start(&mut self, offset: u32) -> &mut Self {
        self.half.start(self.isn.wrapping_add(offset), &mut |delivery| self.collector.take(delivery));
        self
    }

    fn acknowledge(&mut self, offset: u32) -> &mut Self {
        let sequence = self.isn.wrapping_add(offset);
        self.half.acknowledged(sequence, &mut |delivery| self.collector.take(delivery));
        self
    }

    fn acknowledge_unseen(&mut self, offset: u32) -> &mut Self {
        let sequence = self.isn.wrapping_add(offset);
        self.half.acknowledged_unseen(sequence, &mut |delivery| self.collector.take(delivery));
        self
    }

    fn finish(&mut self, total: Option<u64>) -> &mut Self {
        self.half.finish(total, &mut |delivery| self.collector.take(delivery));
        self
    }

    #[track_caller]
    fn delivered(&self, expected: &str) {
        assert_eq!(self.collector.text(), expected);
        let counters = self.half.counters();
        let lost = self.collector.stream.iter().filter(|byte| byte.is_none()).count() as u64;
        assert_eq!(counters.delivered + lost, self.half.offset());
        assert_eq!((counters.gap_bytes, counters.gaps), (lost, self.collector.gaps.len() as u64));
        assert_eq!(counters.conflicts, self.collector.conflicts.len() as u64);
    }
}

#[test]
fn in_order_bytes_are_the_very_slice_that_came_in() {
    let mut half = HalfStream::new(Limits::default());
    half.start(7, &mut |_| {});
    let payload = b"SELECT 1";
    let mut seen = None;
    let segment = Segment { sequence: 7, flags: 0, payload, length: payload.len() as u32, at: Boottime(9) };
    half.segment(&segment, &mut |delivery| {
        if let Delivery::Bytes { bytes, at } = delivery {
            seen = Some((bytes.as_ptr(), bytes.len(), at));
        }
    });
    assert_eq!(seen, Some((payload.as_ptr(), 8, Boottime(9))));
}

#[test]
fn order_is_restored_across_the_wrap_of_sequence_numbers() {
    let mut stream = Fixture::started();
    stream.send(6, "world").delivered("");
    stream.send(0, "hello ").delivered("hello world");
    assert!(stream.half.early_memory() + stream.half.history_memory() < 64);
}

#[test]
fn segments_before_the_beginning_is_known_wait_for_it() {
    let mut stream = Fixture::new(10);
    stream.send(3, "def").send(0, "abc").delivered("");
    stream.start(0).delivered("abcdef");
    assert!(stream.half.start_known());
}

#[test]
fn a_syn_is_a_beginning_and_fast_open_data_follows_it() {
    let mut stream = Fixture::new(99);
    stream.cut(0, "GET", 3, SYN).delivered("GET");
    // The kernel's event comes after the data left: its next number is already past the data.
    stream.start(4).send(4, " /").delivered("GET /");
    assert_eq!(stream.half.counters().contradicting_starts, 0);
}

#[test]
fn the_kernel_overrules_a_forged_syn_while_nothing_was_delivered() {
    let mut stream = Fixture::new(1000);
    stream.cut(500_000, "", 0, SYN).start(1).send(1, "true").delivered("true");
    stream.cut(500_000, "evil", 0, SYN).start(77).send(5, "!").delivered("true!");
    assert_eq!(stream.half.counters().contradicting_starts, 2);
}

#[test]
fn a_retransmission_is_counted_and_what_it_adds_is_delivered() {
    let mut stream = Fixture::started();
    stream.send(0, "abc").send(0, "abc").send(1, "bcde").delivered("abcde");
    assert_eq!(stream.half.counters().repeated, 5);
    assert!(stream.collector.conflicts.is_empty());
}

#[test]
fn delivered_bytes_win_and_a_contradiction_is_told() {
    let mut stream = Fixture::started();
    stream.send(0, "SELECT 1;").send(0, "DELETE 1;x").delivered("SELECT 1;x");
    assert_eq!(stream.collector.conflicts, [(0, 6)]);
}

#[test]
fn the_earlier_beginning_wins_a_partial_overlap_as_in_linux() {
    // The one that was there begins first.
    let mut stream = Fixture::started();
    stream.send(2, "AAA").send(4, "BBB").send(0, "--").delivered("--AAABB");
    assert_eq!(stream.collector.conflicts, [(4, 1)]);
    // The new one begins first.
    let mut stream = Fixture::started();
    stream.send(4, "BBB").send(2, "AAA").send(0, "--").delivered("--AAABB");
    assert_eq!(stream.collector.conflicts, [(4, 1)]);
}

#[test]
fn an_early_segment_within_another_loses_and_a_longer_one_replaces_it() {
    let mut stream = Fixture::started();
    stream.send(2, "AAAA").send(3, "BB").send(2, "CCCC").send(0, "--").delivered("--AAAA");
    assert_eq!(stream.collector.conflicts, [(3, 2), (2, 4)]);
    let mut stream = Fixture::started();
    stream.send(3, "AA").send(7, "DD").send(2, "BBBBBBB").send(0, "--").delivered("--BBBBBBB");
    assert_eq!(stream.collector.conflicts, [(3, 6)]);
}

#[test]
fn an_in_order_segment_wins_over_early_ones() {
    let mut stream = Fixture::started();
    stream.send(2, "AAAA").send(0, "BBBB").delivered("BBBBAA");
    assert_eq!(stream.collector.conflicts, [(2, 2)]);
}

#[test]
fn the_missing_tail_of_a_cut_copy_is_a_gap_unless_something_early_has_it() {
    let mut stream = Fixture::started();
    stream.cut(0, "abc", 6, 0).delivered("abc???");
    stream.send(0, "abcdefg").delivered("abc???g");
    let mut stream = Fixture::started();
    stream.send(4, "e").cut(0, "abc", 6, 0).delivered("abc?e?");
    let mut stream = Fixture::started();
    stream.cut(2, "c", 4, 0).send(2, "cd").send(0, "ab").delivered("abcd??");
    assert!(stream.collector.conflicts.is_empty());
}

#[test]
fn a_segment_without_any_copy_is_a_gap() {
    let mut stream = Fixture::started();
    stream.cut(0, "", 3, 0).send(3, "d").delivered("???d");
    let mut stream = Fixture::started();
    stream.cut(3, "", 3, 0).send(0, "abc").delivered("abc???");
}

#[test]
fn an_acknowledged_hole_is_final() {
    let mut stream = Fixture::started();
    stream.send(2, "c").send(5, "f").acknowledge(1).delivered("?");
    stream.acknowledge(2).delivered("??c");
    // Beyond everything seen: believed only as far as the last byte.
    stream.acknowledge(1_000_000).delivered("??c??f");
    stream.send(0, "ab").send(6, "g").delivered("??c??fg");
}

#[test]
fn where_copies_may_be_missing_an_acknowledgement_tells_of_bytes_that_nobody_saw() {
    let mut fixture = Fixture::started();
    fixture.send(0, "abc").acknowledge(5).delivered("abc");
    fixture.acknowledge_unseen(5).delivered("abc??");
    // Too late: they count as lost.
    fixture.send(3, "defg").delivered("abc??fg");
    // What was seen stays what it was, and FIN is no byte.
    fixture.cut(7, "h", 1, FIN).acknowledge_unseen(9).acknowledge_unseen(2).delivered("abc??fgh");
}

#[test]
fn acknowledgements_that_say_nothing_new_change_nothing() {
    let mut stream = Fixture::started();
    stream.acknowledge(900).send(0, "a").acknowledge(0).acknowledge(900).send(1, "b").delivered("ab");
}

#[test]
fn early_segments_are_bounded_and_the_hole_in_front_is_given_up() {
    let limits = Limits { early_bytes: 8, early_segments: 2, ..Limits::default() };
    let mut stream = Fixture::started();
    stream.half = HalfStream::new(limits);
    stream.start(0).send(2, "cd").send(6, "gh").send(10, "kl").delivered("??cd");
    stream.send(4, "ef").delivered("??cdefgh");
    stream.send(20, "123456789").delivered("??cdefgh??kl????????123456789");
    let mut stream = Fixture::new(5);
    stream.half = HalfStream::new(limits);
    stream.send(4, "e").send(0, "a").send(2, "c").delivered("a");
    assert!(!stream.half.start_known());
}

#[test]
fn in_need_little_is_waited_for_and_nothing_is_lost_that_was_there() {
    let mut fixture = Fixture::started();
    fixture.send(0, "ab").send(4, "ef").send(6, "gh");
    let (early, history) = (fixture.half.early_memory(), fixture.half.history_memory());
    assert!(early > 4 && history == 2, "{early}, {history}");
    let keep = |fixture: &mut Fixture, segments| {
        let Fixture { half, collector, .. } = fixture;
        half.keep_early(100, segments, &mut |delivery| collector.take(delivery));
    };
    keep(&mut fixture, 2);
    fixture.delivered("ab");
    fixture.send(10, "k").delivered("ab??efgh");
    keep(&mut fixture, 0);
    fixture.delivered("ab??efgh??k");
    assert_eq!(fixture.half.early_memory(), size_of_val(fixture.half.gaps()));
    fixture.send(12, "m").delivered("ab??efgh??k?m");
    fixture.half.forget_history();
    assert_eq!(fixture.half.history_memory(), 0);
    fixture.send(12, "X").delivered("ab??efgh??k?m");
    assert!(fixture.collector.conflicts.is_empty(), "nothing is left to hold it against");
}

#[test]
fn state_that_is_written_and_read_again_is_the_same() {
    let mut fixture = Fixture::started();
    fixture.send(0, "abcdef").send(8, "ij");
    let state = postcard::to_stdvec(&fixture.half).unwrap();
    fixture.half = postcard::from_bytes(&state).unwrap();
    fixture.send(0, "abXd").send(6, "gh").delivered("abcdefghij");
    assert_eq!(fixture.collector.conflicts, [(2, 1)]);
}

#[test]
fn what_is_far_away_is_ignored_and_counted() {
    let mut stream = Fixture::started();
    stream.send((1 << 30) + 1, "far").send(u32::MAX - (1 << 30), "before").send(0, "a").delivered("a");
    assert_eq!(stream.half.counters().out_of_window, 2);
}

#[test]
fn a_forged_fin_or_reset_does_not_end_the_stream() {
    let mut stream = Fixture::started();
    stream.send(0, "ab").cut(2, "", 0, FIN).cut(2, "evil", 4, RST);
    assert!(stream.half.at_fin());
    stream.send(2, "cd").delivered("abcd");
    assert_eq!(stream.half.counters().resets, 1);
}

#[test]
fn the_end_shows_what_is_missing() {
    let mut stream = Fixture::started();
    stream.send(0, "a").cut(4, "", 0, FIN).finish(None).delivered("a???");
    let mut stream = Fixture::started();
    stream.send(0, "a").send(3, "d").finish(Some(6)).delivered("a??d??");
    let mut stream = Fixture::started();
    stream.finish(Some(2)).delivered("??");
    let mut stream = Fixture::started();
    stream.send(0, "ab").finish(Some(1)).delivered("ab");
}

#[test]
fn the_end_is_known_from_fin_whether_the_bytes_before_it_were_seen_or_not() {
    let mut stream = Fixture::new(0);
    stream.cut(4, "ef", 0, FIN);
    assert_eq!(stream.half.fin_offset(), None, "counted from a beginning that is not known");
    stream.start(0);
    assert_eq!((stream.half.fin_offset(), stream.half.at_fin()), (Some(6), false));
    stream.finish(Some(6)).delivered("????ef");
    assert_eq!((stream.half.fin_offset(), stream.half.at_fin()), (Some(6), true));
    assert_eq!(Fixture::started().half.fin_offset(), None);
}

#[test]
fn early_bytes_that_the_kernel_never_counted_are_not_delivered() {
    let mut stream = Fixture::started();
    stream.send(0, "a").send(2, "cdef").send(900, "forged").finish(Some(4)).delivered("a?cd");
    assert_eq!(stream.half.counters().uncounted, 8);
}

#[test]
fn without_a_beginning_the_end_and_the_kernel_count_give_it() {
    let mut stream = Fixture::new(0);
    stream.send(4, "ef").cut(6, "", 0, FIN).finish(Some(6)).delivered("????ef");
    let mut stream = Fixture::new(0);
    stream.send(4, "ef").finish(None).delivered("ef");
}

#[test]
fn a_connection_older_than_the_audit_begins_where_it_is_met() {
    let mut stream = Fixture::new(70);
    stream.half.start_midstream(&mut |_| panic!("nothing came yet"));
    stream.send(40, "ef").send(42, "gh").delivered("efgh");
    let mut stream = Fixture::new(70);
    stream.send(42, "gh").send(40, "ef");
    let Fixture { half, collector, .. } = &mut stream;
    half.start_midstream(&mut |delivery| collector.take(delivery));
    stream.delivered("efgh");
}

#[test]
fn gap_ranges_are_bounded_and_neighbours_are_one() {
    let mut stream = Fixture::started();
    stream.cut(0, "", 1, 0).cut(1, "", 1, 0);
    assert_eq!(stream.half.gaps(), [Gap { offset: 0, length: 2 }]);
    for index in 0..100 {
        stream.cut(2 + index * 2, "x", 2, 0);
    }
    assert_eq!(stream.half.gaps().len(), MAX_GAP_RANGES);
    assert_eq!(stream.half.counters().gap_bytes, 102);
}

/// A piece of the stream as it goes over the wire: where, how much, how much of it was captured.
#[derive(Clone, Debug)]
struct Sent {
    offset: usize,
    length: usize,
    captured: usize,
}

/// A stream cut at random; each cut may be repeated, and repetitions overlap other cuts.
fn transmission(cut_copies: bool) -> impl Strategy<Value = (Vec<u8>, Vec<Sent>, u32)> {
    let stream = prop::collection::vec(any::<u8>(), 1..600);
    let wrapping = prop_oneof![any::<u32>(), (u32::MAX - 700)..=u32::MAX];
    (stream, wrapping).prop_flat_map(move |(stream, isn)| {
        let length = stream.len();
        let cuts = prop::collection::btree_set(0..length, 0..40);
        let again = prop::collection::vec((0..length, 1..60_usize), 0..30);
        let captures = prop::collection::vec(if cut_copies { 0..60_usize } else { 600..601 }, 72);
        (Just(stream), cuts, again, captures, Just(isn)).prop_flat_map(
            move |(stream, cuts, again, captures, isn)| {
                let mut bounds: Vec<usize> = cuts.into_iter().collect();
                bounds.insert(0, 0);
                bounds.push(stream.len());
                let sent = bounds.windows(2).map(|pair| (pair[0], pair[1] - pair[0])).chain(
                    again.into_iter().map(|(offset, length)| (offset, length.min(stream.len() - offset))),
                );
                let sent: Vec<Sent> = sent
                    .zip(captures)
                    .map(|((offset, length), captured)| Sent {
                        offset,
                        length,
                        captured: captured.min(length),
                    })
                    .collect();
                (Just(stream), Just(sent).prop_shuffle(), Just(isn))
            },
        )
    })
}

fn replay(half: &mut HalfStream, stream: &[u8], sent: &[Sent], isn: u32, collector: &mut Collector) {
    for piece in sent {
        let segment = Segment {
            sequence: isn.wrapping_add(piece.offset as u32),
            flags: 0,
            payload: &stream[piece.offset..piece.offset + piece.captured],
            length: piece.length as u32,
            at: Boottime(0),
        };
        half.segment(&segment, &mut |delivery| collector.take(delivery));
    }
}

/// Delivered bytes are the truth; the rest is in gaps; together they are the stream.
fn tiles(stream: &[u8], collector: &Collector, half: &HalfStream) -> Result<(), TestCaseError> {
    prop_assert_eq!(collector.stream.len(), stream.len());
    for (delivered, truth) in collector.stream.iter().zip(stream) {
        prop_assert!(delivered.is_none_or(|byte| byte == *truth));
    }
    prop_assert_eq!(half.counters().delivered + half.counters().gap_bytes, stream.len() as u64);
    prop_assert!(collector.conflicts.is_empty());
    let listed: u64 = half.gaps().iter().map(|gap| gap.length).sum();
    prop_assert!(listed == half.counters().gap_bytes || half.gaps().len() == MAX_GAP_RANGES);
    Ok(())
}

proptest! {
    #[test]
    fn whatever_the_order_the_stream_comes_out_whole(
        (stream, sent, isn) in transmission(false),
        started_at in 0..20_usize,
        history_bytes in prop_oneof![Just(0_usize), 1..100_usize],
    ) {
        let mut half = HalfStream::new(Limits { history_bytes, ..Limits::default() });
        let mut collector = Collector::default();
        let (before, after) = sent.split_at(started_at.min(sent.len()));
        replay(&mut half, &stream, before, isn, &mut collector);
        half.start(isn, &mut |delivery| collector.take(delivery));
        replay(&mut half, &stream, after, isn, &mut collector);
        let delivered: Option<Vec<u8>> = collector.stream.iter().copied().collect();
        prop_assert_eq!(delivered.as_deref(), Some(&stream[..]));
        prop_assert_eq!(half.counters().gaps, 0);
        half.finish(Some(stream.len() as u64), &mut |delivery| collector.take(delivery));
        tiles(&stream, &collector, &half)?;
    }

    #[test]
    fn with_losses_bytes_and_gaps_tile_the_stream(
        (stream, sent, isn) in transmission(true),
        lost in prop::collection::vec(any::<bool>(), 72),
        early_bytes in 1..400_usize,
        early_segments in 1..10_usize,
        acknowledgements in prop::collection::vec(prop::option::of((0..600_u32, any::<bool>())), 72),
    ) {
        let mut half = HalfStream::new(Limits { early_bytes, early_segments, ..Limits::default() });
        let mut collector = Collector::default();
        half.start(isn, &mut |delivery| collector.take(delivery));
        for ((piece, lost), acknowledged) in sent.iter().zip(lost).zip(acknowledgements) {
            if !lost {
                replay(&mut half, &stream, std::slice::from_ref(piece), isn, &mut collector);
            }
            if let Some((offset, unseen)) = acknowledged {
                let sequence = isn.wrapping_add(offset);
                if unseen {
                    // An honest end acknowledges what was sent, whether the copies of it arrived here or not.
                    let sequence = isn.wrapping_add(offset.min(stream.len() as u32));
                    half.acknowledged_unseen(sequence, &mut |delivery| collector.take(delivery));
                } else {
                    half.acknowledged(sequence, &mut |delivery| collector.take(delivery));
                }
            }
            prop_assert!(half.queue.bytes() <= early_bytes && half.queue.len() <= early_segments);
        }
        half.finish(Some(stream.len() as u64), &mut |delivery| collector.take(delivery));
        tiles(&stream, &collector, &half)?;
    }

    #[test]
    fn nothing_that_arrives_panics_or_costs_more_than_the_limits(
        script in prop::collection::vec(
            (0..6_u8, any::<u32>(), any::<u8>(), prop::collection::vec(any::<u8>(), 0..50), any::<u32>()),
            0..200,
        ),
        near in any::<bool>(),
    ) {
        let limits = Limits { early_bytes: 300, early_segments: 7, history_bytes: 64, window_bytes: u32::MAX };
        let mut half = HalfStream::new(limits);
        let mut offset = 0;
        let mut sink = |delivery: Delivery<'_>| match delivery {
            Delivery::Bytes { bytes, .. } => offset += bytes.len() as u64,
            Delivery::Gap { length, .. } => offset += length,
            Delivery::Skipped { skip, .. } => offset += u64::from(skip.length),
            Delivery::Conflict { .. } => {}
        };
        for (action, number, flags, payload, length) in script {
            let sequence = if near { number % 400 } else { number };
            match action {
                0 => half.start(sequence, &mut sink),
                1 if flags % 2 == 0 => half.acknowledged(sequence, &mut sink),
                1 => half.acknowledged_unseen(sequence, &mut sink),
                2 if number % 16 == 0 => half.start_midstream(&mut sink),
                3 if number % 32 == 0 => half.finish(Some(u64::from(length) << (number % 33)), &mut sink),
                _ => {
                    let length = if near { length % 100 } else { length };
                    let segment = Segment { sequence, flags, payload: &payload, length, at: Boottime(0) };
                    half.segment(&segment, &mut sink);
                }
            }
            prop_assert!(half.queue.bytes() <= 300 && half.history_memory() <= 64);
            prop_assert!(half.queue.len() <= 7);
            prop_assert!(half.gaps().len() <= MAX_GAP_RANGES);
        }
        half.finish(Some(u64::MAX), &mut sink);
        prop_assert_eq!(half.counters().delivered + half.counters().gap_bytes, half.offset());
        prop_assert_eq!(offset, half.offset());
    }
}
