package vmware

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"
)

// A hypervisor is a Port that keeps strictly to the protocol.
type hypervisor struct {
	t         *testing.T
	vars      map[string]string
	interrupt int // calls that a checkpoint interrupts
	refuse    int // step that is refused, -1 for none

	open      bool
	want      int // bytes of the request still to come, -1 before the length
	request   []byte
	answer    []byte
	announced bool
	calls     int
	channels  int // opened
}

const id, si, di = 5, 0xcafe, 0xbeef

func (h *hypervisor) In(r *Registers) {
	h.calls++
	if r.AX != 0x564d5868 || r.DX&0xffff != 0x5658 || r.CX&0xffff != 0x1e {
		h.t.Fatalf("registers %+v: want magic, port and command 30", *r)
	}
	step := int(r.CX >> 16)
	if step != 0 && (!h.open || r.DX>>16 != id || r.SI != si || r.DI != di) {
		h.t.Fatalf("step %d with registers %+v: want channel and cookie", step, *r)
	}
	status := func(s uint32) { r.CX = s<<16 | r.CX&0xffff }
	if step == h.refuse {
		status(0)
		return
	}
	status(1)
	switch step {
	case 0:
		if h.open || r.BX != 0x49435052|0x80000000 {
			h.t.Fatalf("open with %#x, open already: %v", r.BX, h.open)
		}
		h.open, h.want, h.request, h.answer, h.announced = true, -1, nil, nil, false
		h.channels++
		r.DX, r.SI, r.DI = id<<16|r.DX&0xffff, si, di
	case 1:
		if h.want >= 0 {
			h.t.Fatal("a second length")
		}
		h.want = int(r.BX)
		status(1 | 0x80) // high bandwidth would do, too
	case 2:
		if h.want <= 0 {
			h.t.Fatal("more than was announced")
		}
		b := binary.LittleEndian.AppendUint32(nil, r.BX)
		n := min(h.want, 4)
		h.request, h.want = append(h.request, b[:n]...), h.want-n
		if h.want == 0 {
			h.answer = []byte(h.reply(string(h.request)))
		}
	case 3:
		if h.want != 0 || h.announced {
			h.t.Fatal("asked for an answer at the wrong time")
		}
		if h.interrupt > 0 {
			h.interrupt--
			status(0x10)
			return
		}
		h.announced = true
		status(1 | 2 | 0x80)
		r.BX, r.DX = uint32(len(h.answer)), 1<<16|r.DX&0xffff
	case 4:
		if !h.announced || len(h.answer) == 0 || r.BX != 1 {
			h.t.Fatalf("asked for more than there is, or with %#x", r.BX)
		}
		var b [4]byte
		h.answer = h.answer[copy(b[:], h.answer):]
		r.BX, r.DX = binary.LittleEndian.Uint32(b[:]), 2<<16|r.DX&0xffff
	case 5:
		if len(h.answer) != 0 || r.BX != 1 {
			h.t.Fatal("ended before the end")
		}
	case 6:
		h.open = false
	default:
		h.t.Fatalf("step %d", step)
	}
}

func (h *hypervisor) reply(request string) string {
	name, ok := strings.CutPrefix(request, "info-get ")
	if !ok {
		return "0 Unknown command"
	}
	if v, ok := h.vars[name]; ok {
		return v
	}
	return "0 No value found"
}

func TestGet(t *testing.T) {
	long := strings.Repeat("0123456789", 10000)
	h := &hypervisor{t: t, refuse: -1, vars: map[string]string{
		"guestinfo.a": "1 value", "guestinfo.empty": "1 ", "guestinfo.long": "1 " + long, "guestinfo.odd": "value",
	}}
	for _, c := range []struct {
		name, want string
		ok         bool
	}{
		{"guestinfo.a", "value", true},
		{"guestinfo.empty", "", true},
		{"guestinfo.long", long, true},
		{"guestinfo.none", "", false},
	} {
		h.interrupt = 2
		v, ok, err := Get(h, c.name)
		if v != c.want || ok != c.ok || err != nil || h.open {
			t.Errorf("%s: %.20q, %v, %v, left open: %v", c.name, v, ok, err, h.open)
		}
	}
	if h.channels != 4*3 {
		t.Errorf("%d channels, want 12: two of three calls are interrupted", h.channels)
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []struct {
		name      string
		refuse    int
		interrupt int
		value     string
		want      string
	}{
		{"guestinfo.a", 0, 0, "", "VMware: the hypervisor opens no channel (asking for guestinfo.a)"},
		{"guestinfo.a", 1, 0, "", "VMware: the hypervisor refused the length of a message (status 0x0) (asking for guestinfo.a)"},
		{"guestinfo.a", 2, 0, "", "VMware: the hypervisor refused a part of a message (status 0x0) (asking for guestinfo.a)"},
		{"guestinfo.a", 3, 0, "", "VMware: the hypervisor refused to answer (status 0x0) (asking for guestinfo.a)"},
		{"guestinfo.a", 4, 0, "1 x", "VMware: the hypervisor refused a part of its answer (status 0x0) (asking for guestinfo.a)"},
		{"guestinfo.a", 5, 0, "1 x", "VMware: the hypervisor refused to end its answer (status 0x0) (asking for guestinfo.a)"},
		{"guestinfo.a", -1, 99, "1 x", "VMware: the machine is being moved or restored (asking for guestinfo.a)"},
		{"guestinfo.a", -1, 0, "x", `VMware: found the answer "x" to info-get, want 1 or 0, and a space`},
		{"guestinfo.a", -1, 0, strings.Repeat("1", MaxValue+1), "VMware: the answer has 2097153 bytes, want at most 2097152 (asking for guestinfo.a)"},
		{"guestinfo.a b", -1, 0, "", `VMware: "guestinfo.a b" is no name of a variable`},
	} {
		h := &hypervisor{t: t, refuse: c.refuse, interrupt: c.interrupt, vars: map[string]string{"guestinfo.a": c.value}}
		_, _, err := Get(h, c.name)
		if err == nil || err.Error() != c.want {
			t.Errorf("error %v, want %s", err, c.want)
		}
		if h.open {
			t.Errorf("%v: the channel is left open", err)
		}
	}
}

// TestSilent is a port with nobody behind it, which leaves the registers alone.
func TestSilent(t *testing.T) {
	if _, _, err := Get(silent{}, "guestinfo.a"); err == nil {
		t.Error("no error")
	}
}

type silent struct{}

func (silent) In(*Registers) {}

// TestLocal asks the machine that runs the test what it is, which must not end the
// test where it is no machine of VMware.
func TestLocal(t *testing.T) {
	p, err := Local()
	if err != nil && !errors.Is(err, ErrOther) {
		t.Fatal(err)
	}
	if err == nil {
		if _, _, err := Get(p, "guestinfo.kiln.test"); err != nil {
			t.Error(err)
		}
	}
	t.Log(err)
}
