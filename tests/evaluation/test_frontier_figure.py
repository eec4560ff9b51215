"""Where the figure of a frontier has its labels."""

import numpy as np

from cfgjax.evaluation.report.frontier_figure import LABEL_DISTANCE, label_offsets

ACROSS, UP = LABEL_DISTANCE


def test_labels_are_beyond_the_ends_and_outside_the_angle_of_a_curve():
    first, corner, last = np.sign(label_offsets(np.array([[1.0, 2.0], [0.0, 0.0], [1.0, -2.0]])).round(6))
    assert (*first, *corner, *last) == (1, 1, -1, 0, 1, -1)


def test_labels_are_above_a_straight_line_in_both_directions():
    line = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    for points in (line, line[::-1]):
        np.testing.assert_allclose(label_offsets(points)[1], (0, UP), atol=1e-3)


def test_a_point_without_neighbours_has_its_label_above():
    np.testing.assert_allclose(label_offsets(np.array([[3.0, 3.0]])), [(0, UP)], atol=1e-3)
    same = label_offsets(np.array([[3.0, 3.0]] * 2))
    assert np.isfinite(same).all()


def test_a_label_is_farther_away_across_than_up():
    offsets = label_offsets(np.array([[0.0, 0.0], [1.0, 0.0]]))
    np.testing.assert_allclose(offsets, [(-ACROSS, 0), (ACROSS, 0)], atol=1e-3)
