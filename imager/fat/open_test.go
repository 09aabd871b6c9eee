package fat

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// TestOpenErrors damages one place after the other. In the image the root
// directory is cluster 2, dir is 3 and its only file, of three clusters, begins
// in 4.
func TestOpenErrors(t *testing.T) {
	tr := tree.New()
	add(t, tr, "dir/FILE", data(1, 1200))
	opts := options(36*mib, 512)
	g := newGeometry(opts.Size/512, 512, 512)
	fat, root, dir := g.reserved*512, g.offset(2)+entrySize, g.offset(3)+2*entrySize
	set := func(at int64, v byte) func([]byte) []byte {
		return func(b []byte) []byte { b[at] = v; return b }
	}
	link := func(cluster int64, next uint32) func([]byte) []byte {
		return func(b []byte) []byte { le.PutUint32(b[fat+4*cluster:], next); return b }
	}
	image := make([]byte, opts.Size)
	if _, err := build(t, tr, opts).ReadAt(image, 0); err != nil {
		t.Fatal(err)
	}
	if string(image[dir:][:4]) != "FILE" || !bytes.HasPrefix(image[root:], []byte("Ad\x00i\x00r\x00")) {
		t.Fatal("the entries are elsewhere")
	}
	b := make([]byte, opts.Size)
	for _, tt := range []struct {
		change func([]byte) []byte
		is     error
		want   string
	}{
		{func(b []byte) []byte { return b[:511] }, ErrFormat, "not a FAT file system: 511 bytes"},
		{func(b []byte) []byte { clear(b); return b }, ErrFormat, "no valid parameters in the boot sector"},
		{set(atSignature, 0), ErrFormat, "no valid parameters"},
		{set(atClusterSectors, 3), ErrFormat, "no valid parameters"},
		{set(atSectorSize+1, 3), ErrFormat, "no valid parameters"},
		{func(b []byte) []byte { return b[:30*mib] }, ErrCorrupt, "73728 sectors of 512 bytes, but the image has only 31457280 bytes"},
		{set(atClusterSectors, 2), ErrCorrupt, "FAT32 with 36280 clusters, fewer than 65525: firmware takes it for FAT16"},
		{set(atFATSize32, 1), ErrCorrupt, "clusters, but the FAT has only"},
		{set(atFATs, 0), ErrCorrupt, "reserved sectors, 0 FATs of "},
		{set(atRootEntries, 16), ErrCorrupt, "and 16 root entries in 73728 sectors"},
		{set(atVersion+1, 1), ErrCorrupt, "version 1.0, want 0.0"},
		{set(atRootCluster, 0), ErrCorrupt, "root directory: corrupt FAT file system: cluster 0, there are 2 to "},
		{link(2, 2), ErrCorrupt, "root directory: corrupt FAT file system: cluster 2 is used twice"},
		{link(3, 4), ErrCorrupt, "dir/FILE: corrupt FAT file system: cluster 4 is used twice"},
		{link(4, 4), ErrCorrupt, "dir/FILE: corrupt FAT file system: cluster 4 is used twice"},
		{link(5, endOfFile), ErrCorrupt, "dir/FILE: corrupt FAT file system: 2 clusters of 512 bytes for 1200 bytes"},
		{link(4, 0), ErrCorrupt, "dir/FILE: corrupt FAT file system: cluster 0, there are 2 to "},
		{link(4, 0x0FFFFFF7), ErrCorrupt, "dir/FILE: corrupt FAT file system: cluster 268435447, there are 2 to "},
		{set(dir, '/'), ErrCorrupt, `dir: corrupt FAT file system: file name "/ILE"`},
		{set(dir+atFileSize+3, 0xFF), ErrCorrupt, "dir/FILE: corrupt FAT file system: 3 clusters of 512 bytes for "},
		{func(b []byte) []byte { copy(b[dir+entrySize:], b[dir:][:atClusterLow]); return b }, ErrCorrupt, "dir/FILE: corrupt FAT file system: dir/FILE: exists already"},
	} {
		copy(b, image)
		changed := tt.change(b)
		_, err := Open(bytes.NewReader(changed), int64(len(changed)))
		if !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
}

// TestFragments reads a file whose clusters are in no order, and a directory
// that continues elsewhere.
func TestFragments(t *testing.T) {
	tr := tree.New()
	want := data(3, 4*512-100)
	add(t, tr, "FILE", want)
	opts := options(36*mib, 512)
	g := newGeometry(opts.Size/512, 512, 512)
	m := build(t, tr, opts)
	b := make([]byte, opts.Size)
	if _, err := m.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	// The file is in the clusters 3 to 6; it becomes 3, 6, 10, 5.
	fat := b[g.reserved*512:]
	for c, next := range map[int]uint32{3: 6, 6: 10, 10: 5, 5: endOfFile, 4: 0} {
		le.PutUint32(fat[4*c:], next)
	}
	for i, c := range []int64{3, 6, 10, 5} {
		copy(b[g.offset(c):][:512], append(want[i*512:min(len(want), (i+1)*512):len(want)], make([]byte, 512)...))
	}
	// The root continues in 20.
	le.PutUint32(fat[4*2:], 20)
	le.PutUint32(fat[4*20:], endOfFile)
	for i := range 14 {
		b[g.offset(2)+int64(2+i)*entrySize] = entryFree
	}
	copy(b[g.offset(20):], appendShort(nil, newShortName("MORE", ""), attrArchive, 0, 0, stamp{}))
	got, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil || got.Tree.Len() != 3 || got.Tree.Lookup("MORE") == nil {
		t.Fatalf("%+v, %v", got, err)
	}
	content, err := io.ReadAll(extent.Reader(got.Tree.Lookup("FILE").Content))
	if err != nil || !bytes.Equal(content, want) {
		t.Errorf("content differs, %v", err)
	}
	if used := g.clusters - got.Free/512; used != 6 {
		t.Errorf("%d clusters are in use, want 6", used)
	}
}

// TestShortNames reads names that Build never writes.
func TestShortNames(t *testing.T) {
	long := appendLong(nil, encodeLong("a very long name"), newShortName("ALONGN~1", "").checksum())
	entry := func(name string, kind byte) []byte {
		b := appendShort(nil, shortName([]byte(name)), attrArchive, 0, 0, stamp{})
		b[atCase] = kind
		return b
	}
	for _, tt := range []struct {
		entries []byte
		want    string
	}{
		{entry("README  TXT", 0), "README.TXT"}, {entry("README  TXT", lowerBase), "readme.TXT"},
		{entry("README  TXT", lowerExt), "README.txt"}, {entry("README     ", lowerBase|lowerExt), "readme"},
		{entry("\x05\x81\x9A     \xE1  ", 0), "σüÜ.ß"}, {entry("A B     C D", 0), "A B.C D"},
		{slices.Concat(long, entry("ALONGN~1   ", 0)), "a very long name"},
		{slices.Concat(long, entry("ANOTHER    ", 0)), "ANOTHER"}, // an orphan
		{slices.Concat(long[entrySize:], entry("ALONGN~1   ", 0)), "ALONGN~1"},
		{slices.Concat(long, entry("\xE5LONGN~1   ", 0), entry("ALONGN~1   ", 0)), "ALONGN~1"},
	} {
		w := walker{reader: &reader{bits: 16}, fs: &FileSystem{}}
		got, err := w.entries(extent.Bytes(tt.entries), true)
		if err != nil || len(got) != 1 || got[0].name != tt.want {
			t.Errorf("got %+v, %v, want %q", got, err, tt.want)
		}
	}
}
