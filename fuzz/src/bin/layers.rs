//! Layers from tar streams: each is an error or an image, and all images that were written can be merged.

#![no_main]

use std::fs::File;

use erofs::{Limits, merge, write_layer};
use fuzz::memory_file;
use fuzz::tar_pieces::Piece;
use libfuzzer_sys::fuzz_target;

const MAX_LAYERS: usize = 4;
const MAX_PIECES: usize = 40;
const LIMITS: Limits = Limits { entries: 64, bytes: 1 << 20 };

fuzz_target!(|layers: Vec<Vec<Piece>>| {
    let mut images: Vec<File> = Vec::new();
    for (number, pieces) in layers.iter().take(MAX_LAYERS).enumerate() {
        let mut tar = Vec::new();
        pieces.iter().take(MAX_PIECES).for_each(|piece| piece.append(&mut tar));
        let (image, _) = memory_file(0);
        if let Ok(layer) = write_layer(&*tar, &image, [number as u8; 16], &LIMITS) {
            assert!(layer.entries <= LIMITS.entries && layer.bytes <= LIMITS.bytes, "{layer:?}");
            assert_eq!(image.metadata().expect("a file").len(), u64::from(layer.blocks) * erofs::BLOCK);
            images.push(image);
        }
    }
    let (out, _) = memory_file(0);
    let merged = merge(&images, &out, [9; 16]).expect("what was written can be merged");
    assert_eq!(merged.layers_at.len(), images.len());
    assert_eq!(out.metadata().expect("a file").len(), u64::from(merged.blocks) * erofs::BLOCK);
});
