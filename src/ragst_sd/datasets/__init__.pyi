from ragst_sd.datasets._catalog import catalog as catalog
from ragst_sd.datasets._load import load as load
from ragst_sd.datasets._load_census import load_census as load_census
from ragst_sd.datasets._load_screen import load_screen as load_screen
from ragst_sd.datasets._references import references as references
from ragst_sd.datasets._synthetic import synthetic as synthetic
