package install

import (
	"bytes"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
)

// Pieces are whole blocks, in order and without gaps, whatever the extents are.
func TestCut(t *testing.T) {
	disk := extent.New(40 * mib)
	for _, e := range [][2]int{
		{mib - 100, 50},          // before the area
		{mib, 4097},              // a block and a byte
		{mib + 5000, 100},        // in the same block
		{mib + 9000, 1},          // behind a hole of less than a block
		{mib + 100_000, 1000},    // behind a hole worth the name
		{10*mib + 4095, 9 * mib}, // several pieces
		{29*mib - 10, 20},        // over the area's end
	} {
		if err := disk.Put(int64(e[0]), extent.Bytes(bytesOf(uint64(e[0]), e[1]))); err != nil {
			t.Fatal(err)
		}
	}
	w := &writer{disk: disk}
	a := area{mib, 29 * mib}
	at, data := a.start, int64(0)
	for _, p := range w.cut(nil, a) {
		if p.offset != at || p.length <= 0 || p.offset%blockSize != 0 || p.length%blockSize != 0 || !p.zero && p.length > pieceSize {
			t.Errorf("piece %+v at %d", p, at)
		}
		at += p.length
		if !p.zero {
			data += p.length
			continue
		}
		buf := make([]byte, p.length)
		if _, err := disk.ReadAt(buf, p.offset); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(buf, make([]byte, p.length)) {
			t.Errorf("piece %+v is not zero", p)
		}
	}
	if want := int64(3+1+1+9*256+1) * blockSize; at != a.end || data != want {
		t.Errorf("pieces up to %d with %d bytes of data, want %d with %d", at, data, a.end, want)
	}
}
