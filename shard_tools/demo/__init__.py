"""The demo datasets: real music made on the spot, tagged by construction.

A track goes through these rooms: ``scores`` and ``material`` give notes, ``styles`` makes an
artist's piece of them, ``piece`` says what is true of a window of it, ``synth`` and ``room`` (or
``chain``, the rough one) turn it into sound, ``make`` writes the folder. A ``recipe`` says which
of all that a set uses: the small one, the large one, the stranger one. Nothing is downloaded: the
scores come with music21, the soundfont with pretty_midi; the stranger set's is the user's own.
"""
