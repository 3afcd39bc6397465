use std::io::{Read, Write};
use std::sync::{Barrier, Mutex};
use std::time::Duration;

use super::ways::CHUNK;
use super::*;

/// Runs `work` as every rank of a chain, each a thread, and gives what they return in rank order.
fn ranks<T: Send>(size: usize, work: impl Fn(usize, &Chain) -> T + Sync) -> Vec<T> {
    let places = Mutex::new(vec![Vec::new(); size]);
    let met = Barrier::new(size);
    let one = |rank: usize| {
        let world = World { rank, size, local_rank: rank, local_size: size };
        let gather = |bytes: &[u8]| {
            places.lock().unwrap()[rank] = bytes.to_vec();
            met.wait();
            io::Result::Ok(places.lock().unwrap().clone())
        };
        work(rank, &Chain::connect(world, "127.0.0.1", gather).unwrap())
    };
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..size).map(|rank| scope.spawn(move || one(rank))).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    })
}

/// Numbers of very different sizes: sums in another order are other sums.
fn values(rank: usize, len: usize) -> Vec<f32> {
    let number = |at: usize| {
        let bits = crate::random::draw(7, at as u64, rank as u32, crate::random::Purpose::Order, 0);
        (bits[0] as f32 / u32::MAX as f32 - 0.5) * (2.0f32).powi((bits[1] % 24) as i32 - 12)
    };
    (0..len).map(number).collect()
}

/// What one rank gets that accumulates as many parts.
fn accumulated(size: usize, len: usize) -> Vec<f32> {
    let mut sum = vec![0.0f32; len];
    for rank in 0..size {
        sum.iter_mut().zip(values(rank, len)).for_each(|(sum, value)| *sum += value);
    }
    sum
}

#[test]
fn sums_are_those_of_accumulation_bit_by_bit() {
    // Less than a chunk, several, and a ragged end.
    let lengths = [1, 1000, CHUNK / 4, 3 * CHUNK / 4 + 17];
    for size in [2, 3, 5] {
        let got = ranks(size, |rank, chain| {
            let mut all: Vec<Vec<f32>> = lengths.iter().map(|&len| values(rank, len)).collect();
            // All handed over before any is waited for.
            // SAFETY: nobody touches the vectors before the wait.
            let tickets: Vec<Ticket> = all
                .iter_mut()
                .map(|values| unsafe { chain.submit(values.as_mut_ptr().cast(), values.len(), Sum::F32) })
                .collect();
            chain.wait(tickets[3]).unwrap();
            all
        });
        for (number, &len) in lengths.iter().enumerate() {
            let expected = accumulated(size, len);
            for rank in &got {
                assert!(
                    rank[number].iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()),
                    "{size}"
                );
            }
        }
    }
}

#[test]
fn other_kinds_are_summed_too() {
    let size = 4;
    let got = ranks(size, |rank, chain| {
        let (mut mean, mut wide, mut counts) =
            (values(rank, 100), [0.1, f64::NAN, 0.0], [rank as u64, 1 << 40]);
        wide[2] = 1e-300 * rank as f64;
        chain.sum(&mut mean, Sum::MeanF32).unwrap();
        chain.sum(&mut wide, Sum::F64).unwrap();
        chain.sum(&mut counts, Sum::U64).unwrap();
        chain.sum::<f32>(&mut [], Sum::F32).unwrap();
        (mean, wide, counts)
    });
    let mean: Vec<f32> = accumulated(size, 100).iter().map(|sum| sum / 4.0).collect();
    for (own, wide, counts) in got {
        assert_eq!(own, mean);
        assert_eq!((wide[0], wide[2]), (0.1 + 0.1 + 0.1 + 0.1, 1e-300 + 2e-300 + 3e-300));
        assert!(wide[1].is_nan());
        assert_eq!(counts, [6, 1 << 42]);
    }
}

#[test]
fn a_rank_that_goes_ends_the_wait_of_all() {
    let outcomes = ranks(4, |rank, chain| {
        let mut values = vec![1.0f32; 1 << 18];
        chain.sum(&mut values, Sum::F32).unwrap();
        if rank == 2 {
            return None; // its chain is dropped
        }
        Some(chain.sum(&mut values, Sum::F32).unwrap_err().rank)
    });
    // Rank 0 sees its neighbour hang up, which has seen rank 2 go.
    assert_eq!(outcomes, [Some(1), Some(2), None, Some(2)]);
}

#[test]
fn closing_from_elsewhere_ends_a_wait() {
    let outcomes = ranks(2, |rank, chain| {
        let closer = chain.closer();
        if rank == 1 {
            // Never submits: rank 0 would wait for ever.
            std::thread::sleep(Duration::from_millis(50));
            closer();
            return true;
        }
        chain.sum(&mut [1.0f32], Sum::F32).is_err()
    });
    assert_eq!(outcomes, [true, true]);
}

#[test]
fn what_was_traced_has_bytes_and_times() {
    let spans = ranks(3, |_, chain| {
        chain.trace(true);
        chain.sum(&mut vec![1.0f32; CHUNK], Sum::F32).unwrap();
        chain.sum(&mut [1u64], Sum::U64).unwrap();
        let spans = chain.trace(false);
        chain.sum(&mut [1u64], Sum::U64).unwrap();
        assert!(chain.trace(false).is_empty());
        spans
    });
    for spans in spans {
        assert_eq!(spans.iter().map(|span| span.bytes).collect::<Vec<_>>(), [4 * CHUNK, 8]);
        assert!(spans.iter().all(|span| span.submitted <= span.ended && span.started <= span.ended));
    }
}

#[test]
fn strangers_are_hung_up_on() {
    let listener = listen("127.0.0.1").unwrap();
    let port = listener.local_addr().unwrap().port();
    let callers = std::thread::spawn(move || {
        let mut stranger = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let guess = call("127.0.0.1", port, 4).unwrap();
        let friend = call("127.0.0.1", port, 5).unwrap();
        (stranger, guess, friend)
    });
    let mut link = answer(&listener, 5, PATIENCE).unwrap();
    let (_, _, mut friend) = callers.join().unwrap();
    friend.write_all(b"hello").unwrap();
    let mut word = [0; 5];
    link.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"hello");
}

/// A firewall between two machines, for example: somebody has to know whom it is about.
#[test]
fn a_neighbour_that_cannot_be_reached_is_named() {
    let world = World { rank: 3, size: 5, local_rank: 0, local_size: 1 };
    // Nobody listens there.
    let port = listen("127.0.0.1").unwrap().local_addr().unwrap().port();
    let gather = |own: &[u8]| {
        let mut places = vec![own.to_vec(); 5];
        places[4] = format!("{:016x} 127.0.0.1 {port}", 1).into_bytes();
        io::Result::Ok(places)
    };
    let line = Chain::connect(world, "127.0.0.1", gather).map(drop).unwrap_err().to_string();
    let start = format!("rank 4, a neighbour of rank 3, does not answer at 127.0.0.1, port {port}: ");
    assert!(line.starts_with(&start), "{line}");
    let line = answer(&listen("::1").or(listen("localhost")).unwrap(), 1, Duration::ZERO).unwrap_err();
    assert!(line.to_string().starts_with("has not called port "), "{line}");
}
