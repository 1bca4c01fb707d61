from ragst_sd.get._explain import explain as explain
from ragst_sd.get._gap_closed import gap_closed as gap_closed
from ragst_sd.get._influence import influence as influence
from ragst_sd.get._neighbors import neighbors as neighbors
from ragst_sd.get._risk_coverage import risk_coverage as risk_coverage
from ragst_sd.get._summary import summary as summary
