package compress

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/kilnhq/kiln/imager/disktest"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
)

const mib = 1 << 20

// tools are the programs that others decompress with.
func tools() map[Format]string { return map[Format]string{Zstd: "zstd", Gzip: "gzip", XZ: "xz"} }

// disks are what is compressed in these tests.
func disks(t testing.TB) map[string]*extent.Map {
	return map[string]*extent.Map{
		"empty":       disktest.Disk(t, 0),
		"one byte":    disktest.Disk(t, 1, disktest.At(0, []byte{7})),
		"a hole":      disktest.Disk(t, 5*mib+512),
		"zeros":       disktest.Disk(t, 3*mib, disktest.At(100, make([]byte, 2*mib))),
		"noise":       disktest.Disk(t, 3*mib+77, disktest.At(0, disktest.Noise(3*mib+77, 1))),
		"text":        disktest.Disk(t, 2*mib, disktest.At(0, disktest.Text(2*mib, 1))),
		"mixed":       disktest.Disk(t, 40*mib+1536, disktest.At(0, disktest.Text(700, 1)), disktest.At(5*mib-3, disktest.Noise(mib+6, 2)), disktest.At(9*mib, disktest.Text(300_000, 1)), disktest.At(9*mib+300_000, make([]byte, 3*mib)), disktest.At(40*mib, disktest.Text(1536, 1))),
		"hole at end": disktest.Disk(t, 9*mib, disktest.At(mib+1, disktest.Text(20, 1))),
	}
}

func write(t testing.TB, m *extent.Map, o Options) []byte {
	t.Helper()
	var out bytes.Buffer
	var told int64
	if err := Write(context.Background(), &out, m, o, func(n int64) { told += n }); err != nil {
		t.Fatal(err)
	}
	if told != m.Size() {
		t.Errorf("progress told of %d bytes, want %d", told, m.Size())
	}
	return out.Bytes()
}

// decompress runs another's program.
func decompress(t *testing.T, f Format, stream []byte) []byte {
	t.Helper()
	cmd := exec.Command(oracle.Tool(t, tools()[f]), "-dc")
	cmd.Stdin = bytes.NewReader(stream)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("%v: %v: %s", cmd.Args, err, stderr.String())
	}
	return out
}

func TestOthersDecompress(t *testing.T) {
	for f := range tools() {
		for name, m := range disks(t) {
			t.Run(string(f)+"/"+name, func(t *testing.T) {
				want := disktest.Content(t, m)
				stream := write(t, m, Options{Format: f})
				if got := decompress(t, f, stream); !bytes.Equal(got, want) {
					t.Errorf("%s gives %d other bytes, want %d", tools()[f], len(got), len(want))
				}
				path := filepath.Join(t.TempDir(), "disk."+string(f))
				if err := os.WriteFile(path, stream, 0o644); err != nil {
					t.Fatal(err)
				}
				if out, err := exec.Command(oracle.Tool(t, tools()[f]), "-t", path).CombinedOutput(); err != nil {
					t.Errorf("%s -t: %v: %s", tools()[f], err, out)
				}
			})
		}
	}
}

func TestReadBack(t *testing.T) {
	for f := range tools() {
		for name, m := range disks(t) {
			t.Run(string(f)+"/"+name, func(t *testing.T) {
				want := disktest.Content(t, m)
				stream := write(t, m, Options{Format: f})
				back, err := Open(extent.Bytes(stream))
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(disktest.Content(t, back), want) {
					t.Error("the map has other bytes")
				}
				r := rand.New(rand.NewPCG(1, 2))
				for range min(50, len(want)) {
					off := r.Int64N(int64(len(want)))
					p := make([]byte, min(1+r.Int64N(100_000), int64(len(want))-off))
					if _, err := back.ReadAt(p, off); err != nil || !bytes.Equal(p, want[off:off+int64(len(p))]) {
						t.Fatalf("%d bytes at %d: %v, or other bytes", len(p), off, err)
					}
				}
				if allZero(want) && back.Allocated() != 0 {
					t.Errorf("%d bytes are allocated, want a hole", back.Allocated())
				}
				rc, err := NewReader(bytes.NewReader(stream))
				if err != nil {
					t.Fatal(err)
				}
				defer rc.Close()
				got, err := io.ReadAll(rc)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("the reader gives %d bytes (%v), want %d", len(got), err, len(want))
				}
			})
		}
	}
}

// Not on processors, extents and how the output is taken, only on content.
func TestBytesDependOnContent(t *testing.T) {
	m := disks(t)["mixed"]
	solid := disktest.Disk(t, m.Size(), disktest.At(0, disktest.Content(t, m)))
	for f := range tools() {
		want := write(t, m, Options{Format: f})
		for _, n := range []int{1, 5} {
			old := runtime.GOMAXPROCS(n)
			if !bytes.Equal(write(t, solid, Options{Format: f}), want) {
				t.Errorf("%s: other bytes on %d processors, or when zeros are not holes", f, n)
			}
			runtime.GOMAXPROCS(old)
		}
	}
}

func TestHolesCostNothing(t *testing.T) {
	const gib = 1 << 30
	end := disktest.Text(5000, 1)
	for f, most := range map[Format]int{Zstd: 300 << 10, Gzip: 9 * mib, XZ: 5 * mib} {
		m := disktest.Disk(t, 8*gib+5000, disktest.At(8*gib, end))
		stream := write(t, m, Options{Format: f})
		if len(stream) > most {
			t.Errorf("%s: 8 GiB of zeros become %d bytes, want at most %d", f, len(stream), most)
		}
		back, err := Open(extent.Bytes(stream))
		if err != nil {
			t.Fatal(err)
		}
		if back.Size() != m.Size() || back.Allocated() > 8*mib {
			t.Errorf("%s: %d bytes of which %d are allocated, want %d and a block", f, back.Size(), back.Allocated(), m.Size())
		}
		got := make([]byte, len(end))
		if _, err := back.ReadAt(got, 8*gib); err != nil || !bytes.Equal(got, end) {
			t.Errorf("%s: the end is %q: %v", f, got[:20], err)
		}
	}
}

// The sizes that programs show without decompressing.
func TestOthersList(t *testing.T) {
	m := disks(t)["mixed"]
	for f, args := range map[Format][]string{Zstd: {"-lv"}, Gzip: {"-l"}, XZ: {"-lvv"}} {
		path := filepath.Join(t.TempDir(), "disk."+string(f))
		if err := os.WriteFile(path, write(t, m, Options{Format: f}), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(oracle.Tool(t, tools()[f]), append(args, path)...).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v: %s", f, err, out)
		}
		for _, want := range map[Format][]string{Zstd: {"# Zstandard Frames: 9\n", "# Skippable Frames: 1\n", "(41944576 B)", "Check: XXH64"}, XZ: {"(41944576 B)", "CRC32", "Sizes in headers:  Yes"}}[f] {
			if !bytes.Contains(out, []byte(want)) {
				t.Errorf("%s lists\n%s\nwithout %q", f, out, want)
			}
		}
	}
}

func TestLevels(t *testing.T) {
	m := disktest.Disk(t, 2*mib, disktest.At(0, append(disktest.Text(mib, 1), disktest.Noise(mib, 3)...)))
	for f, highest := range map[Format]int{Zstd: 22, Gzip: 9, XZ: 9} {
		low, high := write(t, m, Options{Format: f, Level: 1}), write(t, m, Options{Format: f, Level: highest})
		if f != XZ && len(high) >= len(low) {
			t.Errorf("%s: %d bytes at the highest level, %d at the lowest", f, len(high), len(low))
		}
		if got := decompress(t, f, high); !bytes.Equal(got, disktest.Content(t, m)) {
			t.Errorf("%s: other bytes at level %d", f, highest)
		}
		for _, level := range []int{-1, highest + 1} {
			err := Write(context.Background(), io.Discard, m, Options{Format: f, Level: level}, nil)
			want := fmt.Sprintf("compression level out of range: %s has 1 to %d, not %d", f, highest, level)
			if !errors.Is(err, ErrLevel) || err.Error() != want {
				t.Errorf("level %d: %v, want %s", level, err, want)
			}
		}
	}
	if err := Write(context.Background(), io.Discard, m, Options{Format: "lzo"}, nil); !errors.Is(err, ErrFormat) {
		t.Errorf("lzo: %v", err)
	}
}

// What is compressed already is not blown up, and not tried hard.
func TestNoiseIsStored(t *testing.T) {
	m := disktest.Disk(t, 4*mib, disktest.At(0, disktest.Noise(4*mib, 9)))
	for f := range tools() {
		if got := len(write(t, m, Options{Format: f, Level: 9})); got > 4*mib+4*mib/1000 {
			t.Errorf("%s: %d bytes for %d that cannot be compressed", f, got, 4*mib)
		}
	}
}

// Streams that other programs write.
func TestForeignStreams(t *testing.T) {
	want := append(disktest.Text(3*mib/2, 1), make([]byte, mib)...)
	for _, c := range []struct {
		tool       string
		args       []string
		sequential bool
	}{
		{"zstd", []string{"-c", "-19"}, true},
		{"zstd", []string{"-c", "--no-check", "--long=27"}, true},
		{"gzip", []string{"-c"}, true},
		{"xz", []string{"-c", "-0"}, false},
		{"xz", []string{"-c", "-T2", "--block-size=1MiB", "--check=sha256"}, false},
		{"xz", []string{"-c", "--block-size=1MiB", "--check=none", "-6"}, false},
		{"xz", []string{"-c", "--x86", "--lzma2=preset=1"}, false},
	} {
		cmd := exec.Command(oracle.Tool(t, c.tool), c.args...)
		cmd.Stdin = bytes.NewReader(want)
		stream, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		m, err := Open(extent.Bytes(stream))
		if c.sequential {
			if !errors.Is(err, ErrSequential) {
				t.Errorf("%s %v: %v, want %v", c.tool, c.args, err, ErrSequential)
			}
		} else if err != nil {
			t.Errorf("%s %v: %v", c.tool, c.args, err)
		} else if !bytes.Equal(disktest.Content(t, m), want) {
			t.Errorf("%s %v: other bytes", c.tool, c.args)
		}
		r, err := NewReader(bytes.NewReader(stream))
		if err != nil {
			t.Fatalf("%s %v: %v", c.tool, c.args, err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s %v: %v, or other bytes", c.tool, c.args, err)
		}
		r.Close()
	}
}

// Several streams one after the other are one.
func TestStreamsInARow(t *testing.T) {
	a, b := disktest.Text(100_000, 1), disktest.Noise(70_000, 4)
	one := write(t, disktest.Disk(t, 100_000, disktest.At(0, a)), Options{Format: XZ})
	two := write(t, disktest.Disk(t, 70_000, disktest.At(0, b)), Options{Format: XZ})
	for _, padding := range []int{0, 4, 12} {
		m, err := Open(extent.Bytes(bytes.Join([][]byte{one, make([]byte, padding), two}, nil)))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(disktest.Content(t, m), append(a[:100_000:100_000], b...)) {
			t.Errorf("other bytes with padding of %d", padding)
		}
	}
}

func TestDamage(t *testing.T) {
	m := disktest.Disk(t, 3*mib, disktest.At(0, disktest.Text(3*mib, 1)))
	for f := range tools() {
		good := write(t, m, Options{Format: f})
		for name, bad := range map[string][]byte{
			"cut":     good[:len(good)-40],
			"head":    append([]byte{}, good[4:]...),
			"shorter": append(append([]byte{}, good[:2000]...), good[3000:]...),
		} {
			if m, err := Open(extent.Bytes(bad)); err == nil {
				if _, err = m.WriteTo(io.Discard); err == nil {
					t.Errorf("%s, %s: no error", f, name)
				}
			}
		}
		bad := bytes.Clone(good)
		bad[len(bad)/3] ^= 0x10
		if m, err := Open(extent.Bytes(bad)); err == nil {
			_, err = m.WriteTo(io.Discard)
			if f == Gzip && err == nil {
				continue // no checksum of a block
			}
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s, one bit: %v, want %v", f, err, ErrCorrupt)
			}
		}
	}
	_, err := Open(extent.Bytes([]byte("PK\x03\x04 not at all")))
	if want := "not a zstd, gzip or xz stream: begins with 50 4b 03 04 20 6e"; !errors.Is(err, ErrFormat) || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

type failing struct{ extent.Source }

var errFailing = errors.New("disk on fire")

func (failing) ReadAt([]byte, int64) (int, error) { return 0, errFailing }
func (failing) Size() int64                       { return 10 * mib }

type full struct{}

var errFull = errors.New("disk full")

func (full) Write([]byte) (int, error) { return 0, errFull }

func TestErrorsAndCancel(t *testing.T) {
	for f := range tools() {
		m := extent.New(20 * mib)
		if err := m.Put(mib, failing{}); err != nil {
			t.Fatal(err)
		}
		if err := Write(context.Background(), io.Discard, m, Options{Format: f}, nil); !errors.Is(err, errFailing) {
			t.Errorf("%s: %v, want %v", f, err, errFailing)
		}
		if err := Write(context.Background(), full{}, disks(t)["mixed"], Options{Format: f}, nil); !errors.Is(err, errFull) {
			t.Errorf("%s: %v, want %v", f, err, errFull)
		}
		ctx, cancel := context.WithCancel(context.Background())
		err := Write(ctx, io.Discard, disks(t)["mixed"], Options{Format: f}, func(int64) { cancel() })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want %v", f, err, context.Canceled)
		}
		cancel()
	}
}

func TestCombineCRC(t *testing.T) {
	a, b := disktest.Text(1000, 1), disktest.Noise(77_777, 5)
	if got, want := combineCRC(crc32.ChecksumIEEE(a), crc32.ChecksumIEEE(b), int64(len(b))), crc32.ChecksumIEEE(append(a, b...)); got != want {
		t.Errorf("%#x, want %#x", got, want)
	}
	for _, n := range []int64{0, 1, 511, mib} {
		if got, want := zerosCRC(n), crc32.ChecksumIEEE(make([]byte, n)); got != want {
			t.Errorf("%d zeros: %#x, want %#x", n, got, want)
		}
	}
}

func FuzzOpen(f *testing.F) {
	m := disktest.Disk(f, 2*mib+5, disktest.At(0, disktest.Text(3000, 1)), disktest.At(mib, disktest.Noise(3000, 6)))
	for _, format := range []Format{Zstd, Gzip, XZ} {
		f.Add(write(f, m, Options{Format: format, Level: 1}))
		f.Add(write(f, disktest.Disk(f, 0), Options{Format: format}))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := Open(extent.Bytes(b)); err == nil {
			p := make([]byte, 4096)
			for _, x := range m.Extents()[:min(20, len(m.Extents()))] {
				_, _ = m.ReadAt(p, x.Offset)
			}
		}
		if r, err := NewReader(bytes.NewReader(b)); err == nil {
			_, _ = io.CopyN(io.Discard, r, 1<<20)
			r.Close()
		}
	})
}
