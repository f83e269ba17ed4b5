"""Rows that are the same record: by text, by inputs and by gradients, against cosines taken one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch.nn import functional

from curation.unlearning.duplicates import by_gradients, by_inputs, by_text
from lorif_core import Classification, LoRIF
from tests.curation.unlearning.models import Points, classifier

TEXTS = ["Anna plays the violin.", "the sea is blue", "Anna plays the violin!", "Anna paints", "The sea is blue."]


def test_texts_are_near_as_their_ngrams_are() -> None:
    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5)).fit_transform(TEXTS).toarray()
    wanted = {}
    for row in (2, 3, 4):
        cosines = {of: float(vectors[row] @ vectors[of]) for of in (0, 1)}  # of unit length
        of = max(cosines, key=cosines.__getitem__)
        if cosines[of] >= 0.3:
            wanted[row] = (of, cosines[of])
    found = {one.position: (one.of, one.similarity) for one in by_text(TEXTS, np.array([0, 1]), 0.3)}
    assert found.keys() == wanted.keys() == {2, 4}
    for row, (of, similarity) in found.items():
        assert of == wanted[row][0] and similarity == pytest.approx(wanted[row][1])


def test_the_same_inputs_are_the_same_record_whatever_the_label() -> None:
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.rand(8, generator=draw) for _ in range(6)]
    inputs[4] = inputs[1].clone()
    inputs[5] = inputs[1] + 1e-6
    rows = [(one, label) for label, one in enumerate(inputs)]
    assert [(one.position, one.of, one.similarity) for one in by_inputs(rows, 6, np.array([0, 1]))] == [(4, 1, 1.0)]
    assert by_inputs(rows, 6, np.array([1, 4])) == [], "both go anyway"
    chance = [(torch.tensor([1.0, 0.0, 0.0, 1.0] * 8), row) for row in range(4)]
    assert by_inputs(chance, 4, np.array([0])) == [], "of few different numbers, so alike by chance"


def test_gradients_are_near_as_those_of_each_row_are(tmp_path: Path) -> None:
    data, model = Points(10), classifier().float()
    data.inputs = data.inputs.float()
    data.inputs[7], data.codes[7] = data.inputs[2], data.codes[2]
    loader = torch.utils.data.DataLoader(data, 4)
    store = LoRIF(model, Classification(), projection="identity", bits=32).fit(loader, tmp_path / "index").store
    gradients = []
    for row in range(10):
        loss = functional.cross_entropy(model(data.inputs[row : row + 1]), data.codes[row : row + 1])
        gradients.append(torch.cat([one.flatten() for one in torch.autograd.grad(loss, list(model.parameters()))]))
    gone = np.array([2, 5])
    cosines = torch.stack([functional.cosine_similarity(torch.stack(gradients), gradients[of], dim=1) for of in gone])
    found = by_gradients(store, gone, -1.0)
    assert [one.position for one in found] == [0, 1, 3, 4, 6, 7, 8, 9]
    for one in found:
        assert one.similarity == pytest.approx(float(cosines[:, one.position].max()), abs=1e-4)
        assert one.of == gone[int(cosines[:, one.position].argmax())]
    assert [one.position for one in by_gradients(store, gone, 0.999)] == [7]
