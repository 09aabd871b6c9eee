package layers

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

func TestVerify(t *testing.T) {
	sound := bytes.Repeat([]byte("layer "), 100_000)
	sum := sha256.Sum256(sound)
	y := Layer{Kind: RootFS, Name: "base", Path: "rootfs.sqsh", Size: int64(len(sound)), SHA256: hex.EncodeToString(sum[:])}
	changed := bytes.Clone(sound)
	changed[300_000] ^= 1
	cut := bytes.Clone(sound)
	clear(cut[200_000:])
	for _, c := range []struct {
		name string
		data []byte
		want string // in the error, "" for none
	}{
		{"sound", sound, ""},
		{"changed", changed, "rootfs.sqsh (rootfs base): layer is damaged: found sha256 "},
		{"cut", cut, "found only zeros after the first 200000 of 600000 bytes, sha256 "},
		{"short", sound[:599_999], "found 599999 bytes, want 600000"},
		{"long", append(bytes.Clone(sound), 0), "found more than 600000 bytes, want 600000"},
		{"empty", nil, "found 0 bytes, want 600000"},
	} {
		err := y.Verify(bytes.NewReader(c.data))
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got error %v, want %q", c.name, err, c.want)
		}
	}
}
