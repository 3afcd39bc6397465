use std::io::{Read, Write};
use std::sync::{Barrier, Mutex};
use std::time::Duration;

use super::connect::Place;
use super::threads::CHUNK;
use super::*;

/// Runs `work` for every rank of a chain, each on a thread, and returns the results in rank order.
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

/// Numbers of very different sizes, so that another order of additions gives other sums.
fn values(rank: usize, len: usize) -> Vec<f32> {
    // SplitMix64.
    let mut state = rank as u64;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let bits = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let exponent = (bits % 24) as i32 - 12;
        ((bits >> 32) as f32 / u32::MAX as f32 - 0.5) * 2.0f32.powi(exponent)
    };
    (0..len).map(|_| next()).collect()
}

/// The sum that one rank gets by accumulating the values of all.
fn accumulated(size: usize, len: usize) -> Vec<f32> {
    let mut sum = vec![0.0f32; len];
    for rank in 0..size {
        sum.iter_mut().zip(values(rank, len)).for_each(|(sum, value)| *sum += value);
    }
    sum
}

#[test]
fn sum_equals_accumulation_bit_by_bit() {
    // Less than a chunk, a whole chunk, and several with an incomplete one.
    let lengths = [1, 1000, CHUNK / 4, 3 * CHUNK / 4 + 17];
    for size in [2, 3, 5] {
        let got = ranks(size, |rank, chain| {
            let mut all: Vec<Vec<f32>> = lengths.iter().map(|&len| values(rank, len)).collect();
            // All are submitted before the first wait.
            // SAFETY: nothing accesses the vectors before the wait.
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
fn sum_of_every_kind_of_number() {
    let size = 4;
    let got = ranks(size, |rank, chain| {
        let mut mean = values(rank, 100);
        let mut wide = [0.1, f64::NAN, 1e-300 * rank as f64];
        let mut counts = [rank as u64, 1 << 40];
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
fn dropped_chain_ends_the_wait_of_all_ranks() {
    let outcomes = ranks(4, |rank, chain| {
        let mut values = vec![1.0f32; 1 << 18];
        chain.sum(&mut values, Sum::F32).unwrap();
        if rank == 2 {
            return None; // drops its chain
        }
        Some(chain.sum(&mut values, Sum::F32).unwrap_err().rank)
    });
    // Rank 1 closes its connections because rank 2 has closed its own, so rank 0 names rank 1.
    assert_eq!(outcomes, [Some(1), Some(2), None, Some(2)]);
}

#[test]
fn closer_ends_a_wait_on_another_thread() {
    let outcomes = ranks(2, |rank, chain| {
        let closer = chain.closer();
        if rank == 1 {
            // Submits nothing: rank 0 would wait for ever.
            std::thread::sleep(Duration::from_millis(50));
            closer();
            return true;
        }
        chain.sum(&mut [1.0f32], Sum::F32).is_err()
    });
    assert_eq!(outcomes, [true, true]);
}

#[test]
fn trace_has_bytes_and_times() {
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
fn strangers_are_disconnected() {
    let listener = listen("127.0.0.1").unwrap();
    let port = listener.local_addr().unwrap().port();
    let callers = std::thread::spawn(move || {
        let mut stranger = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let place = Place { token: 5, host: "127.0.0.1".into(), port };
        let guess = call(&place, 4).unwrap();
        let neighbour = call(&place, 5).unwrap();
        (stranger, guess, neighbour)
    });
    let mut link = answer(&listener, 5, PATIENCE).unwrap();
    let (_, _, mut neighbour) = callers.join().unwrap();
    neighbour.write_all(b"hello").unwrap();
    let mut word = [0; 5];
    link.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"hello");
}

/// Behind a firewall, for example.
#[test]
fn unreachable_neighbour_is_named() {
    let world = World { rank: 3, size: 5, local_rank: 0, local_size: 1 };
    // Nothing listens there.
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
