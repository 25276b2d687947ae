"""Log-mel spectra of speech, with numpy only: what small audio networks take as input."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..supernet.errors import UsageError

Floats = NDArray[np.float32]

WINDOW_S, HOP_S = 0.032, 0.010
FFT = 512
# The power of a sound at the threshold of 16 bits: silence has a finite logarithm.
FLOOR = 1e-6


def log_mel(wave: Floats, rate: int, bands: int, frames: int) -> Floats:
    """Natural logarithms of band powers (bands, frames), a frame every 10 ms.

    `wave` has values from -1 to 1. Its middle is taken: a longer one is cut at both ends, a shorter
    one gets silence there. Hann windows of 32 ms; bands as `mel_bands` says.
    """
    window, hop = round(WINDOW_S * rate), round(HOP_S * rate)
    if window > FFT:
        raise UsageError(f"audio: a rate of {rate} Hz; at most {int(FFT / WINDOW_S)} is supported")
    starts = hop * np.arange(frames)
    long = centred(wave, int(starts[-1]) + window)
    spectra = np.fft.rfft(long[starts[:, None] + np.arange(window)] * np.hanning(window), FFT)
    power = np.square(np.abs(spectra)) / FFT
    found: Floats = np.log(mel_bands(bands, rate) @ power.T + FLOOR).astype(np.float32)
    return found


def centred(wave: Floats, samples: int) -> Floats:
    """The middle `samples` of a wave, between silence where it has fewer."""
    cut = max(0, (len(wave) - samples) // 2)
    wave = wave[cut : cut + samples]
    before = (samples - len(wave)) // 2
    return np.pad(wave, (before, samples - len(wave) - before))


@lru_cache(maxsize=8)
def mel_bands(bands: int, rate: int) -> NDArray[np.float64]:
    """Triangular filters (bands, FFT / 2 + 1), equally spaced in mel = 2595 log10(1 + f / 700)."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, bands + 2) / 2595) - 1)
    frequencies = np.arange(FFT // 2 + 1) * rate / FFT
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (frequencies - low) / (centre - low)
    falling = (high - frequencies) / (high - centre)
    filters: NDArray[np.float64] = np.maximum(0, np.minimum(rising, falling))
    if not filters.any(axis=1).all():
        raise UsageError(
            f"audio: {bands} bands at {rate} Hz; the lowest would be empty, take fewer"
        )
    return filters
