//go:build linux

package test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/kilnhq/kiln/internal/oracle"
)

const metaCopy = 256 << 10 // bytes

// metaCopies is what the published format says of META with the value of one key.
func metaCopies(key byte, value string) []byte {
	b := make([]byte, metaCopy)
	copy(b, "\x5a\x4b\x3c\x2d")
	b[7], b[11] = key, byte(len(value))
	copy(b[12:], value)
	copy(b[metaCopy-4:], "\xa5\xb4\xc3\xd2")
	sum := sha256.Sum256(b)
	copy(b[metaCopy-36:], sum[:])
	return slices.Concat(b, b)
}

// Setting values changes META, as the format has it, and nothing else.
func TestMeta(t *testing.T) {
	b := newBench(t)
	eachImage(t, func(t *testing.T, img image, file string) {
		disk := copySparse(t, file)
		place := readTable(t, disk, img.sector).find(t, "META")
		if out := b.succeeds(t, "meta", "list", disk); out != "KEY  NAME  BYTES  VALUE\n" {
			t.Errorf("META that was never written: %s", out)
		}
		b.succeeds(t, "meta", "set", disk, "metal-network=address: 192.0.2.7/24")
		if got, want := read(t, carve(t, disk, place)), metaCopies(0x0a, "address: 192.0.2.7/24"); !bytes.Equal(got[:len(want)], want) || len(bytes.Trim(got[len(want):], "\x00")) != 0 {
			t.Error("META is not what the format says")
		}
		for _, key := range []string{"0x0a", "10", "metal-network"} {
			if got := b.succeeds(t, "meta", "get", disk, key); got != "address: 192.0.2.7/24" {
				t.Errorf("%s is %q", key, got)
			}
		}
		b.succeeds(t, "meta", "set", disk, "0x80=rack-7", "user-1=", "10=other")
		list := "KEY   NAME           BYTES  VALUE\n0x0a  metal-network  5      \"other\"\n0x0c  user-1         0      \"\"\n0x80  -              6      \"rack-7\"\n"
		if got := b.succeeds(t, "meta", "list", disk); got != list {
			t.Errorf("the list is\n%s\nwant\n%s", got, list)
		}

		small := filepath.Join(t.TempDir(), "metal.qcow2")
		b.succeeds(t, "convert", disk, "--output", small)
		if got := b.succeeds(t, "meta", "list", small); got != list {
			t.Errorf("the list in the qcow2 is\n%s\nwant\n%s", got, list)
		}
		b.fails(t, refused, []string{small + ": it is qcow2, and values can be changed in raw images and on devices only; 'kiln convert " + small + " --format raw --output FILE' makes one"}, "meta", "set", small, "10=x")

		b.fails(t, notFound, []string{disk + ": META has no value of key 0x0d (user-2); 'kiln meta list " + disk + "' shows those it has"}, "meta", "delete", disk, "10", "user-2")
		if got := b.succeeds(t, "meta", "list", disk); got != list {
			t.Errorf("after nothing was deleted the list is\n%s", got)
		}
		b.succeeds(t, "meta", "delete", disk, "10", "0x80", "user-1")
		if got := b.succeeds(t, "meta", "list", "--json", disk); strings.Join(strings.Fields(got), "") != `{"image":"`+disk+`","values":[]}` {
			t.Errorf("after all was deleted: %s", got)
		}

		// Zeros again, and it is the image that it was.
		f, err := os.OpenFile(disk, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt(make([]byte, place.size), place.start); err != nil {
			t.Fatal(err)
		}
		if digest(t, disk) != digest(t, file) {
			t.Error("something else than META was changed")
		}
	})
}

// In vmdk, vhdx and compressed images values are read where they are.
func TestMetaFormats(t *testing.T) {
	b, disk := newBench(t), copySparse(t, oracle.Artifact(t, "KILN_IMAGE"))
	b.succeeds(t, "meta", "set", disk, "user-2=blue")
	for _, name := range []string{"metal.vmdk", "metal.vhdx", "metal.raw.zst"} {
		file := filepath.Join(t.TempDir(), name)
		b.succeeds(t, "convert", disk, "--output", file)
		if got := b.succeeds(t, "meta", "get", file, "user-2"); got != "blue" {
			t.Errorf("%s: user-2 is %q", name, got)
		}
	}
}

// A partition alone: damage of one copy is told of and repaired, and damage of
// both is not written over.
func TestMetaDamage(t *testing.T) {
	b := newBench(t)
	file := b.file(t, "META", make([]byte, 1<<20))
	value := b.file(t, "value", []byte("\xff\x00binary"))
	b.succeeds(t, "meta", "set", file, "--file", "0x81="+value)
	whole := read(t, file)
	for i, place := range []string{"first", "second"} {
		damaged := slices.Clone(whole)
		damaged[i*metaCopy+20] ^= 0x10
		if err := os.WriteFile(file, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := b.command("meta", "get", file, "0x81")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if want := "kiln: " + file + ": the " + place + " copy of META is unusable: its SHA-256 is "; err != nil || string(out) != "\xff\x00binary" || !strings.HasPrefix(stderr.String(), want) {
			t.Errorf("%s copy damaged: %q, %v\n%s", place, out, err, stderr.String())
		}
		var list struct {
			Degraded string
			Values   []struct {
				Key    string
				Base64 []byte
			}
		}
		if err := json.Unmarshal([]byte(b.succeeds(t, "meta", "list", "--json", file)), &list); err != nil || !strings.Contains(list.Degraded, "the "+place+" copy") || len(list.Values) != 1 || string(list.Values[0].Base64) != "\xff\x00binary" {
			t.Errorf("listed as %+v, %v", list, err)
		}
		b.succeeds(t, "meta", "set", file, "--file", "0x81="+value)
		if !bytes.Equal(read(t, file), whole) {
			t.Errorf("the %s copy was not repaired", place)
		}
	}
	foreign := bytes.Repeat([]byte("GRUB"), 1<<18)
	if err := os.WriteFile(file, foreign, 0o600); err != nil {
		t.Fatal(err)
	}
	words := []string{file + ": META is damaged: the first copy of META is unusable: it begins with 0x47525542, want 0x5a4b3c2d; the second copy of META is unusable: it begins with 0x47525542", "if it is META, fill it with zeros to begin anew"}
	b.fails(t, refused, words, "meta", "list", file)
	b.fails(t, refused, append(words, "nothing was changed"), "meta", "set", file, "1=a")
	b.fails(t, refused, append(words, "nothing was changed"), "meta", "delete", "--all", file)
	if !bytes.Equal(read(t, file), foreign) {
		t.Error("what is not META was written over")
	}

	// On a disk the label says that it is META.
	disk := copySparse(t, oracle.Artifact(t, "KILN_IMAGE"))
	place := readTable(t, disk, 512).find(t, "META")
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(foreign, place.start); err != nil {
		t.Fatal(err)
	}
	b.fails(t, refused, []string{"nothing was changed; 'kiln meta delete --all " + disk + "' begins anew, without values"}, "meta", "set", disk, "1=a")
	b.succeeds(t, "meta", "delete", "--all", disk)
	b.succeeds(t, "meta", "set", disk, "1=a")
}

// Two at a time do not lose each other's values.
func TestMetaLock(t *testing.T) {
	b := newBench(t)
	file := b.file(t, "META", make([]byte, 1<<20))
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for j := range 3 {
				if out, err := b.command("meta", "set", file, fmt.Sprintf("%d=x", 128+3*i+j)).CombinedOutput(); err != nil {
					t.Errorf("%v: %s", err, out)
				}
			}
		})
	}
	all.Wait()
	if n := strings.Count(b.succeeds(t, "meta", "list", file), "\n") - 1; n != 12 {
		t.Errorf("%d values, 12 were set", n)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	b.fails(t, refused, []string{file + ": another program has locked it; try again when that has ended"}, "meta", "set", file, "1=a")
}

func TestMetaErrors(t *testing.T) {
	b := newBench(t)
	file := b.file(t, "META", make([]byte, 1<<20))
	large := b.file(t, "large", make([]byte, 1<<18))
	fits := b.file(t, "fits", make([]byte, 262096))
	other := b.file(t, "other", make([]byte, 3<<20))
	for _, test := range []struct {
		code  int
		words string
		args  []string
	}{
		{usage, `invalid META key "usr-1": want a number or a name; did you mean "user-1"?`, []string{"set", file, "usr-1=a"}},
		{usage, "invalid META key 256: want 1 to 255, or 0x01 to 0xff", []string{"get", file, "256"}},
		{usage, `"0x80" has no '=', want KEY=VALUE`, []string{"set", file, "0x80"}},
		{usage, "key 0x0c (user-1) is set twice; leave one out", []string{"set", file, "12=a", "user-1=b"}},
		{usage, "kiln meta set takes an image and KEY=VALUE, or --file KEY=FILE; see 'kiln meta set --help'", []string{"set", file}},
		{usage, "kiln meta delete takes an image and keys, or --all; see 'kiln meta delete --help'", []string{"delete", file}},
		{usage, "kiln meta delete takes an image and keys, or --all", []string{"delete", "--all", file, "1"}},
		{usage, "kiln meta get takes an image and a key, got 1 arguments", []string{"get", file}},
		{usage, large + ": it has more than the 262104 bytes that fit into META", []string{"set", file, "--file", "1=" + large}},
		{usage, file + ": META is full: the values take 262113 bytes with 8 for each, at most 262104 fit; the largest is that of key 0x80 with 262096 bytes; nothing was changed", []string{"set", file, "0x81=a", "--file", "0x80=" + fits}},
		{notFound, "no such file or directory", []string{"set", file, "--file", "1=" + file + ".missing"}},
		{notFound, "no such file or directory", []string{"list", file + ".missing"}},
		{notFound, file + ": META has no value of key 0x01", []string{"get", file, "1"}},
		{refused, other + ": no META: it is not a disk with the partition META (no GUID partition table: no header in sector 1 or in the last one, with sectors of 512 or 4096 bytes), nor such a partition, which has 1048576 bytes", []string{"set", other, "1=a"}},
	} {
		b.fails(t, test.code, []string{test.words}, append([]string{"meta"}, test.args...)...)
	}
	if got := read(t, file); len(bytes.Trim(got, "\x00")) != 0 {
		t.Error("a command that failed has written")
	}
}

// On a block device, with sectors of either size.
func TestMetaDevice(t *testing.T) {
	oracle.Root(t)
	b, losetup := newBench(t), oracle.Tool(t, "losetup")
	eachImage(t, func(t *testing.T, img image, file string) {
		disk := copySparse(t, file)
		dev := strings.TrimSpace(run(t, losetup, "--sector-size", fmt.Sprint(img.sector), "--find", "--show", disk))
		t.Cleanup(func() {
			if out, err := exec.Command(losetup, "-d", dev).CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
		b.succeeds(t, "meta", "set", dev, "reset-request=EPHEMERAL")
		if got := b.succeeds(t, "meta", "get", dev, "0xf2"); got != "EPHEMERAL" {
			t.Errorf("on the device it is %q", got)
		}
		place := readTable(t, disk, img.sector).find(t, "META")
		if got, want := read(t, carve(t, disk, place)), metaCopies(0xf2, "EPHEMERAL"); !bytes.Equal(got[:len(want)], want) {
			t.Error("META is not what the format says")
		}
	})
}

// A file system that is full: the message says which values there are now.
func TestMetaFull(t *testing.T) {
	oracle.Root(t)
	b, dir := newBench(t), t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	file := filepath.Join(dir, "META")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 1<<20); err != nil {
		t.Fatal(err)
	}
	b.fails(t, outputFails, []string{file + ": write META: ", "no space left on device; the values of before are still there"}, "meta", "set", file, "1=a")
	if got := b.succeeds(t, "meta", "list", "--json", file); !strings.Contains(got, `"values": []`) {
		t.Errorf("it has values now: %s", got)
	}
}
