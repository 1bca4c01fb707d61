from ragst_sd.pp._embed_tiles import embed_tiles as embed_tiles
from ragst_sd.pp._encoders import encoders as encoders
from ragst_sd.pp._filter_predicted import filter_predicted as filter_predicted
from ragst_sd.pp._harmonize_genes import harmonize_genes as harmonize_genes
from ragst_sd.pp._label_spots import label_spots as label_spots
from ragst_sd.pp._set_image_mpp import set_image_mpp as set_image_mpp
from ragst_sd.pp._tile_grid import tile_grid as tile_grid
from ragst_sd.pp._use_features import use_features as use_features
