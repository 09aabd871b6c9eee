//go:build linux

package devicemapper

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fake is a kernel that fails as told and remembers what it was asked.
type fake struct {
	fails map[uint]error
	full  int // how many answers do not fit
	asked []string
}

var requests = map[uint]string{
	unix.DM_DEV_CREATE: "create", unix.DM_TABLE_LOAD: "load", unix.DM_DEV_SUSPEND: "suspend", unix.DM_DEV_REMOVE: "remove",
	unix.DM_LIST_VERSIONS: "versions", unix.DM_LIST_DEVICES: "list", unix.DM_TABLE_STATUS: "status",
}

func (k *fake) control() *Control {
	return &Control{ioctl: func(request uint, buf []byte) error {
		a, err := decode(buf)
		if err != nil {
			return err
		}
		k.asked = append(k.asked, fmt.Sprintf("%s %s %d", requests[request], unix.ByteSliceToString(a.header.Name[:]), a.header.Flags))
		if err := k.fails[request]; err != nil {
			return err
		}
		put := func(off int, v uint32) { order.PutUint32(buf[off:], v) }
		switch request {
		case unix.DM_DEV_CREATE:
			put(40, 0xfe03)
		case unix.DM_LIST_VERSIONS:
			copy(a.data[16:], "linear\x00")
		case unix.DM_LIST_DEVICES:
			if k.full > 0 {
				k.full--
				put(28, unix.DM_BUFFER_FULL_FLAG)
			}
		}
		return nil
	}}
}

func TestCreate(t *testing.T) {
	v := Verity{Data: "/dev/a", Hash: "/dev/a", Blocks: 1, Start: 1}
	whole := []Segment{{"/dev/a", 0, 512}}
	made := []string{"create x 0", "load x 1", "suspend x 1"}
	undone := []string{"create x 0", "load x 1", "remove x 0"}
	for _, tc := range []struct {
		name   string
		fails  map[uint]error
		do     func(c *Control) (string, error)
		is     error
		want   string // path or error
		expect []string
	}{
		{"verity", nil, func(c *Control) (string, error) { return c.Verity("x", v) }, nil, "/dev/dm-3", made},
		{"linear", nil, func(c *Control) (string, error) { return c.Linear("x", true, whole) }, nil, "/dev/dm-3", made},
		{"writable", nil, func(c *Control) (string, error) { return c.Linear("x", false, whole) }, nil, "/dev/dm-3",
			[]string{"create x 0", "load x 0", "suspend x 0"}},
		{"exists", map[uint]error{unix.DM_DEV_CREATE: unix.EBUSY}, func(c *Control) (string, error) { return c.Verity("x", v) }, unix.EBUSY,
			`verity device "x": create: device or resource busy: there is a device of that name`, made[:1]},
		{"no target", map[uint]error{unix.DM_TABLE_LOAD: unix.EINVAL}, func(c *Control) (string, error) { return c.Verity("x", v) }, ErrMissing,
			`verity device "x": load the table: target verity: the kernel does not have it: invalid argument; load the module dm_verity`,
			[]string{"create x 0", "load x 1", "versions  0", "remove x 0"}},
		{"refused", map[uint]error{unix.DM_TABLE_LOAD: unix.EINVAL}, func(c *Control) (string, error) { return c.Linear("x", true, whole) }, unix.EINVAL,
			`linear device "x": load the table: invalid argument: the kernel log says what is wrong with "0 1 linear /dev/a 0"`,
			[]string{"create x 0", "load x 1", "versions  0", "remove x 0"}},
		{"no device", map[uint]error{unix.DM_TABLE_LOAD: unix.ENODEV}, func(c *Control) (string, error) { return c.Verity("x", v) }, unix.ENODEV,
			`verity device "x": load the table: no such device: /dev/a: not there`, undone},
		{"too small", map[uint]error{unix.DM_TABLE_LOAD: unix.E2BIG}, func(c *Control) (string, error) { return c.Verity("x", v) }, unix.E2BIG,
			`verity device "x": load the table: argument list too long: /dev/a is too small for the hash tree`, undone},
		{"busy", map[uint]error{unix.DM_TABLE_LOAD: unix.EBUSY}, func(c *Control) (string, error) { return c.Linear("x", true, whole) }, unix.EBUSY,
			`linear device "x": load the table: device or resource busy: /dev/a: mounted, or used by another device`, undone},
		{"resume", map[uint]error{unix.DM_DEV_SUSPEND: unix.ENOMEM, unix.DM_DEV_REMOVE: unix.EBUSY}, func(c *Control) (string, error) { return c.Verity("x", v) }, unix.ENOMEM,
			`verity device "x": activate the table: cannot allocate memory`, append(slices.Clone(made), "remove x 0")},
		{"no name", nil, func(c *Control) (string, error) { return c.Verity("", v) }, nil, `verity device "": create: it has no name`, nil},
		{"name", nil, func(c *Control) (string, error) { return c.Verity("a/b", v) }, nil,
			`verity device "a/b": create: the name "a/b" cannot be that of a device: at most 127 bytes, no slash`, nil},
		{"options", nil, func(c *Control) (string, error) { return c.Verity("x", Verity{}) }, nil, `verity device "x": it cannot have 0 blocks`, nil},
		{"segments", nil, func(c *Control) (string, error) { return c.Linear("x", true, nil) }, nil, `linear device "x": it has no segments`, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := &fake{fails: tc.fails}
			got, err := tc.do(k.control())
			if err != nil {
				got = err.Error()
			}
			if !strings.HasPrefix(got, tc.want) || (tc.is != nil && !errors.Is(err, tc.is)) {
				t.Errorf("got  %s\nwant %s (%v)", got, tc.want, tc.is)
			}
			if !slices.Equal(k.asked, tc.expect) {
				t.Errorf("asked %q, want %q", k.asked, tc.expect)
			}
		})
	}
}

func TestRemoveAndAsk(t *testing.T) {
	k := &fake{fails: map[uint]error{unix.DM_DEV_REMOVE: unix.ENXIO, unix.DM_TABLE_STATUS: unix.ENXIO}, full: 2}
	c := k.control()
	const want = `mapped device "x": %s: no such device or address: there is no device of that name`
	if err := c.Remove("x"); !errors.Is(err, unix.ENXIO) || err.Error() != fmt.Sprintf(want, "remove") {
		t.Errorf("Remove: %v", err)
	}
	if _, err := c.Status("x"); !errors.Is(err, unix.ENXIO) || err.Error() != fmt.Sprintf(want, "status") {
		t.Errorf("Status: %v", err)
	}
	if list, err := c.List(); err != nil || len(list) != 0 || k.full != 0 {
		t.Errorf("List: %v, %v, %d answers left that do not fit", list, err, k.full)
	}
	k.full = 100
	if _, err := c.List(); err == nil || !strings.Contains(err.Error(), "takes more than 1048576 bytes") {
		t.Errorf("a list without end: %v", err)
	}
}

func TestVerityTarget(t *testing.T) {
	sound := Verity{Data: "/dev/loop0", Hash: "/dev/loop0", Blocks: 129, Start: 130, Root: [32]byte{0xfe, 31: 1}, Salt: []byte("salt")}
	with := func(change func(*Verity)) Verity {
		v := sound
		change(&v)
		return v
	}
	const table = "0 1032 verity 1 /dev/loop0 /dev/loop0 4096 4096 129 130 sha256 fe00000000000000000000000000000000000000000000000000000000000001 "
	for _, tc := range []struct {
		v    Verity
		want string
	}{
		{sound, table + "73616c74"},
		{with(func(v *Verity) { v.Salt = nil }), table + "-"},
		{with(func(v *Verity) { v.OnCorruption = Restart }), table + "73616c74 1 restart_on_corruption"},
		{with(func(v *Verity) { v.IgnoreZeroBlocks = true }), table + "73616c74 1 ignore_zero_blocks"},
		{with(func(v *Verity) { v.OnCorruption, v.IgnoreZeroBlocks = Panic, true }), table + "73616c74 2 panic_on_corruption ignore_zero_blocks"},
		{with(func(v *Verity) { v.Blocks = -1 }), "it cannot have -1 blocks: want 1 to 2251799813685247"},
		{with(func(v *Verity) { v.Blocks = maxBlocks + 1 }), "it cannot have 2251799813685248 blocks: want 1 to 2251799813685247"},
		{with(func(v *Verity) { v.Start = -1 }), "its tree cannot begin at block -1: want 0 to 2251799813685247"},
		{with(func(v *Verity) { v.Start = 128 }), "its tree cannot begin at block 128 of /dev/loop0: the data end at 129"},
		{with(func(v *Verity) { v.Hash = "/dev/a b" }), `the path "/dev/a b" of a device cannot be in a table: want one without white space and backslashes`},
		{with(func(v *Verity) { v.Data = "" }), `the path "" of a device cannot be in a table: want one without white space and backslashes`},
		{with(func(v *Verity) { v.OnCorruption = "pray" }), `it cannot do "pray" when a block is damaged: want "restart_on_corruption", "panic_on_corruption" or nothing`},
	} {
		target, err := tc.v.target()
		got := target.String()
		if err != nil {
			got = err.Error()
		}
		if got != tc.want {
			t.Errorf("got  %s\nwant %s", got, tc.want)
		}
	}
}

func TestLinearTargets(t *testing.T) {
	for _, tc := range []struct {
		s    Segment
		want string
	}{
		{Segment{"/dev/a", 3, 512}, "segment 0 of 512 bytes at 3 of /dev/a is not of whole sectors of 512 bytes"},
		{Segment{"/dev/a", 0, 0}, "segment 0 of 0 bytes at 0 of /dev/a is not of whole sectors of 512 bytes"},
		{Segment{"/dev/a", -512, 512}, "segment 0 of 512 bytes at -512 of /dev/a is not of whole sectors of 512 bytes"},
		{Segment{"a\nb", 0, 512}, `the path "a\nb" of a device cannot be in a table`},
	} {
		if _, err := linear([]Segment{tc.s}); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("error %v, want %q", err, tc.want)
		}
	}
}
