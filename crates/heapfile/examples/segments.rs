use leakscope_heapfile::{Arena, layout::*};
use std::sync::atomic::Ordering::Relaxed;
fn main() {
    let arena = Arena::open(std::path::Path::new(&std::env::args().nth(1).unwrap())).unwrap();
    for w in arena.windows() {
        let window = arena.window(w).unwrap();
        println!("chunks {} next {} ready {}", arena.chunks_of(w).iter().map(|c| c.1).sum::<u64>(), arena.superblock().next.load(Relaxed)/CHUNK, arena.superblock().ready.load(Relaxed)/CHUNK);
        let (mut regions, mut slots, mut used, mut segs) = (0u64, 0u64, 0u64, 0u64);
        let mut hist = [0u64; 20];
        let mut n = 0;
        for s in &window.spans {
            let s = s.load(Relaxed);
            if s == 0 { continue; }
            let page: &[std::sync::atomic::AtomicU64; SPAN_REGIONS] = arena.at((s & 0xffff_ffff) * UNIT).unwrap();
            for e in page {
                let e = e.load(Relaxed);
                if e == 0 { continue; }
                regions += 1;
                let mut at = (e & 0xffff_ffff) * UNIT;
                let mut len = 0;
                let mut line = String::new();
                while at != 0 {
                    let seg: &Segment = arena.at(at).unwrap();
                    let b = seg.buckets.load(Relaxed) as u64;
                    let mut u = 0;
                    for i in 0..b * 4 { let w: &std::sync::atomic::AtomicU64 = arena.at(at + 64 + i * 16).unwrap(); if w.load(Relaxed) != 0 { u += 1; } }
                    slots += b * 4; used += u; segs += 1; len += 1;
                    line += &format!(" {}/{}", u, b * 4);
                    at = seg.next.load(Relaxed) as u64 * UNIT;
                }
                hist[len] += 1;
                n += 1;
                if n % 100 == 5 { println!("{line}"); }
            }
        }
        println!("regions {regions} segs {segs} slots {slots} used {used} fill {:.2} hist {:?}", used as f64 / slots as f64, &hist[..10]);
    }
}
