//! Replays the kept fuzz input.

use std::path::Path;

#[test]
fn every_kept_input_passes_its_target() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, target) in nuncio_fuzz::TARGETS {
        let mut count = 0;
        for entry in std::fs::read_dir(corpus.join(name)).unwrap_or_else(|e| panic!("corpus/{name}: {e}")) {
            let path = entry.expect("readable").path();
            let data = std::fs::read(&path).expect("readable");
            target(&data);
            // Neighbours cost nothing and find what the seeds only hint at.
            for i in 0..data.len().min(200) {
                target(&data[..i]);
                let mut changed = data.clone();
                changed[i] ^= 1 << (i % 8);
                target(&changed);
            }
            count += 1;
        }
        assert!(count >= 10, "corpus/{name} has {count} inputs");
    }
}
