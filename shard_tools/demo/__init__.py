"""The demo dataset: real music made on the spot, tagged by construction.

A track goes through these rooms: ``scores`` and ``material`` give notes,
``styles`` makes an artist's piece of them, ``piece`` says what is true of a
window of it, ``synth`` and ``room`` turn it into sound, ``make`` writes the
folder. Nothing is downloaded: the scores come with music21, the soundfont with
pretty_midi.
"""
