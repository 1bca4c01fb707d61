"""Every key of `.obs`, `.var`, `.obsm`, `.layers`, `.uns` and `.attrs` that this package owns and writes results to."""

from __future__ import annotations

from ragst_sd.reference.schema import REFERENCE_VERSION as REFERENCE_VERSION
from ragst_sd.reference.schema import SCHEMA_VERSION as SCHEMA_VERSION

# sdata.attrs[ATTRS][IMAGE_MPP, IMAGE_PIXELS or VALUE_MAX][<image key>], sdata.attrs[ATTRS][MADE_OF],
# table.uns[ATTRS][EMBEDDINGS][<obsm key>],
# table.uns[ATTRS][GENES], reference.uns[ATTRS]
ATTRS = "ragst"
IMAGE_MPP = "image_mpp"
IMAGE_PIXELS = "image_pixels"
VALUE_MAX = "value_max"
EMBEDDINGS = "embeddings"
SOURCE = "source"
MADE_OF = "made_of"
TILE_GRID = "tile_grid"
# pictures of spots in a table's obsm, uns[ATTRS][PATCHES]["mpp"] of them; stands for the image in headers
PATCHES = "patches"
GENES = "genes"

# a table whose genes were harmonised
GENE_ORIGINAL = "gene_original"
GENE_HOW = "gene_how"

# a table with embeddings
PADDED = "tile_padded_fraction"
SPATIAL = "spatial"

# a predicted table
RETRIEVAL = "retrieval"
CITED = "cited"
PREDICTION_ID = "prediction_id"
PREDICTION_SUM = "prediction_checksum"
N_PREDICTED = "n_predicted"
# of a cited row
DIGEST = "digest"
FRAME_HASH = "frame_hash"
ROWS = "retrieval_rows"
WEIGHTS = "retrieval_weights"
DISTANCES = "retrieval_distances"
EVIDENCE = "evidence"
DISAGREEMENT = "disagreement"
LOWER = "lower"
UPPER = "upper"
INTERVAL_LEVEL = "interval_level"
INTERVAL_UNIT = "interval_unit"
INTERVAL_UNITS = "interval_units"
INTERVAL_LEVELS = "interval_levels"
INTERVAL_QUANTILES = "interval_quantiles"
EFFECTIVE_N = "effective_n"
N_DONORS = "n_donors"
DISTANCE_PERCENTILE = "distance_percentile"
APPEARANCE_DISTANCE = "appearance_distance"
OUT_OF_REFERENCE = "out_of_reference"
EVIDENCE_SHARE = "evidence_share"
LEVEL = "level"
LEVEL_ROWS = "level_rows"
REGRESSION_ROWS = "regression_rows"
RETRIEVAL_SHARE = "retrieval_share"
N_MEASURED = "n_measured"
REFERENCE_VARIANCE = "reference_variance"
CV_PEARSON = "cv_pearson"
NOISE_CEILING = "noise_ceiling"
SCRNA = "scRNA-seq"

# the reference
DONOR = "donor"
SAMPLE = "sample"
TISSUE = "tissue"
TECHNOLOGY = "technology"
X_UM = "x_um"
Y_UM = "y_um"
PANEL = "panel"
COUNTS = "counts"
MEASURED = "measured"
THUMBNAIL = "thumbnail"
RETRIEVAL_KEY = "retrieval_key"
REGRESSION_KEY = "regression_key"
FIT = "fit"
CALIBRATION = "calibration"
GENE_TRUST = "gene_trust"
ANNOTATIONS_HASH = "annotations_hash"
# of the reference, and of a table predicted from it
CELL_TYPES = "cell_types"
CELL_TYPE_FRACTION = "cell_type_fraction"
CELL_TYPE_FIT = "cell_type_fit"

# a perturbation reference, and tables of predicted responses
PERTURBATION = "perturbation"
CONTEXT = "context"
PERTURBATION_TYPE = "perturbation_type"
N_CELLS = "n_cells"
N_CONTROLS = "n_controls"
RELIABILITY = "reliability"
STANDARD_ERROR = "standard_error"
LEARNED_FROM = "learned_from"
STARTS_FROM = "starts_from"
TASK = "task"
RESPONSE_HALVES = ("response_half1", "response_half2")
PERTURBATION_EMBEDDING = "perturbation_embedding"
RESPONSE = "response"
CITED_RELIABILITY = "cited_reliability"
EMBEDDING_SHARE = "embedding_share"
# of tissue only
RESPONSE_MAGNITUDE = "response_magnitude"
STATE_DISTANCE = "state_distance"
STATE_PERCENTILE = "state_percentile"
FAR_FROM_SCREEN = "far_from_screen"
GENE_OVERLAP = "gene_overlap"
CONTROL_CELLS = "control_cells"
CONTEXT_MEANS = "context_means"
CONTROL_NAMES = "control_names"
CONTROL_PRINTS = "control_prints"
ALL_CONTEXTS = "all"

UNKNOWN = "unknown"
UNIT = "log1p(counts per 10,000)"
