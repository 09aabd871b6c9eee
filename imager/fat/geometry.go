package fat

const (
	// reservedSectors are before the first FAT, more if that aligns clusters.
	reservedSectors = 32
	fats            = 2
	rootCluster     = 2 // also the number of the first cluster
	alignment       = 4096

	// fat32Clusters is the smallest number of clusters of FAT32.
	fat32Clusters = 65525
	// minClusters keeps the distance to it that the specification recommends,
	// because of implementations that count wrongly.
	minClusters = fat32Clusters + 16
	// maxClusters keeps clear of the numbers with a meaning of their own, which
	// begin at 0x0FFFFFF0.
	maxClusters = 0x0FFFFFF0 - rootCluster

	maxClusterSize = 32 << 10
	maxSize        = (1<<32 - 1) * 512 // the number of sectors has 32 bits
)

// geometry says where things are. Its numbers are in sectors.
type geometry struct {
	sectorSize int64
	sectors    int64 // of the file system, at most those of the partition
	cluster    int64 // size of a cluster
	reserved   int64
	fatSize    int64 // of one FAT
	clusters   int64 // number of them
}

// newGeometry returns the geometry with the most clusters of the given size in a
// partition of so many sectors. A larger partition never has fewer.
func newGeometry(sectors, sectorSize, clusterSize int64) geometry {
	cluster := clusterSize / sectorSize
	rest := sectors - reservedSectors
	if rest < 0 {
		return geometry{}
	}
	// The FAT's size depends on the number of clusters, which is what both FATs
	// leave. With F its sectors and N = (rest - 2F)/cluster, the smallest F with
	// F*sectorSize >= 4*(N + 2) has room for all. One less may still be better.
	f := ceil(4*(rest+rootCluster*cluster), sectorSize*cluster+4*fats)
	var best geometry
	for _, f := range []int64{f, f - 1} {
		g := geometry{sectorSize: sectorSize, sectors: sectors, cluster: cluster, reserved: reservedSectors, fatSize: f}
		align := max(cluster, alignment/sectorSize)
		g.reserved += (align - g.data()%align) % align
		g.clusters = (sectors - g.data()) / cluster
		if room := f*sectorSize/4 - rootCluster; g.clusters > room {
			g.clusters = room
			g.sectors = g.data() + room*cluster // readers count clusters by it
		}
		if g.clusters > best.clusters {
			best = g
		}
	}
	return best
}

// data is the first sector of the first cluster.
func (g geometry) data() int64 { return g.reserved + fats*g.fatSize }

func (g geometry) clusterSize() int64 { return g.cluster * g.sectorSize }

// offset returns where a cluster is, in bytes.
func (g geometry) offset(cluster int64) int64 {
	return (g.data() + (cluster-rootCluster)*g.cluster) * g.sectorSize
}

// largestCluster is the largest size of a cluster in bytes on a file system of
// size bytes.
func largestCluster(size int64) int64 {
	switch {
	case size <= 8<<30:
		return 4 << 10
	case size <= 16<<30:
		return 8 << 10
	case size <= 32<<30:
		return 16 << 10
	}
	return maxClusterSize
}

// fit returns the geometry with the largest clusters with which v fits.
func (v *volume) fit(sectors int64) (geometry, bool) {
	size := int64(v.opts.SectorSize)
	for c := largestCluster(sectors * size); c >= size; c /= 2 {
		g := newGeometry(sectors, size, c)
		if g.clusters >= minClusters && g.clusters <= maxClusters && v.clusters(c) <= g.clusters {
			return g, true
		}
	}
	return geometry{}, false
}

// minSize returns the size in bytes of the smallest geometry with which v fits.
func (v *volume) minSize() (int64, error) {
	size := int64(v.opts.SectorSize)
	var least int64
	for c := size; c <= maxClusterSize; c *= 2 {
		need := max(minClusters, v.clusters(c))
		if need > maxClusters {
			continue
		}
		// Padding makes this one step too small at times.
		sectors := reservedSectors + need*(c/size) + fats*ceil(4*(need+rootCluster), size)
		for newGeometry(sectors, size, c).clusters < need {
			sectors++
		}
		bytes := sectors * size
		if c <= largestCluster(bytes) && bytes <= maxSize && (least == 0 || bytes < least) {
			least = bytes
		}
	}
	if least == 0 {
		return 0, unsupported("the tree needs %d bytes, more than the largest FAT32 of %d", v.clusters(maxClusterSize)*maxClusterSize, int64(maxSize))
	}
	return least, nil
}

func ceil(n, by int64) int64 { return (n + by - 1) / by }
