package ocidisk

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/rootfs/ociimage"
)

const mib = 1 << 20

func TestContainerDisk(t *testing.T) {
	disk := extent.New(10*mib + 512)
	if err := disk.PutBytes(3*mib+17, bytes.Repeat([]byte("disk"), 100)); err != nil {
		t.Fatal(err)
	}
	config := ociimage.Config{Architecture: "arm64", Created: time.Unix(1_700_000_000, 0)}
	for _, compression := range []ociimage.Compression{ociimage.None, ociimage.Gzip} {
		img, err := ContainerDisk(context.Background(), "disk.img", disk, config, compression)
		if err != nil {
			t.Fatal(err)
		}
		r := mutate.Extract(img)
		cmd := exec.Command(oracle.Tool(t, "tar"), "-tv", "--numeric-owner", "-f", "-")
		cmd.Env = []string{"LC_ALL=C", "TZ=UTC"}
		cmd.Stdin = r
		out, err := cmd.CombinedOutput()
		r.Close()
		want := "drwxr-xr-x 107/107 0 2023-11-14 22:13 disk -r--r--r-- 107/107 10486272 2023-11-14 22:13 disk/disk.img"
		if got := strings.Join(strings.Fields(string(out)), " "); err != nil || got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
		r = mutate.Extract(img)
		x := tar.NewReader(r)
		for {
			h, err := x.Next()
			if err != nil {
				t.Fatal(err)
			}
			if h.Typeflag == tar.TypeReg {
				break
			}
		}
		got, err := io.ReadAll(x)
		r.Close()
		var content bytes.Buffer
		if _, werr := disk.WriteTo(&content); errors.Join(err, werr) != nil || !bytes.Equal(got, content.Bytes()) {
			t.Errorf("%v, %v, or other bytes", err, werr)
		}
		size, err := img.Layers()
		if n, _ := size[0].Size(); err != nil || compression == ociimage.Gzip && n > 20_000 {
			t.Errorf("the layer has %d bytes", n)
		}
	}
	for _, name := range []string{"", ".", "../x", "a/b"} {
		if _, err := ContainerDisk(context.Background(), name, disk, config, ociimage.None); !errors.Is(err, ociimage.ErrInvalid) {
			t.Errorf("%q: %v, want %v", name, err, ociimage.ErrInvalid)
		}
	}
}
