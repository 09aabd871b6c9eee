//go:build linux

package dashboard

import (
	"bytes"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

var update = flag.Bool("update", false, "rewrite the golden screens")

// ready is a node as it should be.
func ready() *State {
	return &State{
		Version: "v0.6.0", Hostname: "node1.example.org", Uptime: 49*time.Hour + 3*time.Minute + 4*time.Second,
		Stage: Ready, Release: "6.12.117+deb12-cloud-amd64", Slot: "A", Disk: "/dev/vda",
		CPUs: 4, CPU: 0.034, MemoryUsed: 143 << 20, MemoryTotal: 1957 << 20,
		Config: "STATE", Digest: "sha256:7d865e959b2466918c9863afca942d0fb89d7c9ac0c99bafc3749504ded97730", Port: 50000,
		Links: []Link{
			{"eth0", true, []netip.Prefix{netip.MustParsePrefix("10.0.2.15/24"), netip.MustParsePrefix("fec0::5054:ff:fe12:3456/64")}},
			{"eth1", false, nil},
		},
		Gateways: []string{"10.0.2.2"}, Resolvers: []netip.Addr{netip.MustParseAddr("10.0.2.3"), netip.MustParseAddr("fec0::3")},
		Services: []Service{{"apid", "running", "", true, false}, {"containerd", "running", "", true, false}},
		Log: []Entry{
			{1234 * time.Millisecond, "stage=initramfs watchdog=softdog", 6},
			{61 * time.Second, "ready version=v0.6.0 release=6.12.117 slot=A", 6},
		},
	}
}

// waiting is a node without a configuration, among hostile machines.
func waiting() *State {
	s := ready()
	s.Hostname = "\x1b[2J\x9bevil\x00\u202e漢\u0301"
	s.Config, s.Digest, s.Port = "", "", 0
	s.Fingerprint = "SHA256:uJo7Q2vN1pTzC0m3q9LwYx4RkB8sHfDgE6aKZtVnPiM"
	s.Slot, s.Disk, s.CPU = "", "", -1
	s.Links[0].Addresses = nil
	s.Gateways, s.Resolvers = nil, nil
	s.Services = append(s.Services[:1], Service{"containerd", "backoff", "exited with status 1\x1b[31m\n\tand more", false, true})
	for i := range 40 {
		s.Log = append(s.Log, Entry{time.Duration(100+i) * time.Second, fmt.Sprintf("service containerd: backoff: line %d\x07\x1bc", i), 4})
	}
	s.Log = append(s.Log, Entry{200 * time.Second, "failed stage=state error=\"" + strings.Repeat("no space left on device ", 9) + "\"", 3})
	return s
}

// crowded is a node with more of everything than fits.
func crowded() *State {
	s := ready()
	for i := range 30 {
		s.Links = append(s.Links, Link{fmt.Sprintf("eth%d", i+2), true, []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}})
		s.Services = append(s.Services, Service{fmt.Sprintf("container-%d", i), "running", "", true, false})
	}
	for range 6 {
		s.Resolvers = append(s.Resolvers, netip.MustParseAddr("2001:db8:1234:5678:9abc:def0:1234:5678"))
	}
	return s
}

// The screens are as they were when somebody last looked at them.
func TestRender(t *testing.T) {
	for name, c := range map[string]struct {
		state         *State
		width, height int
	}{
		"ready-80x25": {ready(), 80, 25}, "ready-160x50": {ready(), 160, 50}, "ready-40x12": {ready(), 40, 12},
		"maintenance-80x25": {waiting(), 80, 25}, "crowded-80x25": {crowded(), 80, 25},
	} {
		t.Run(name, func(t *testing.T) {
			got := Render(c.state, c.width, c.height).String()
			file := filepath.Join("testdata", name)
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// On every size there is a screen with nothing but visible characters of it.
func TestSizes(t *testing.T) {
	visible := regexp.MustCompile(`^[ -~¡-ÿ─•»\n]*$`)
	for _, s := range []*State{{}, ready(), waiting(), crowded()} {
		for width := 0; width < 90; width += 1 + width/20 {
			for height := range 30 {
				screen := Render(s, width, height)
				if len(screen.cells) != max(1, width)*max(1, height) {
					t.Fatalf("%dx%d: %d cells", width, height, len(screen.cells))
				}
				if text := screen.String(); !visible.MatchString(text) {
					t.Fatalf("%dx%d:\n%q", width, height, text)
				}
			}
		}
	}
	if huge := Render(ready(), 1<<30, 1<<30); huge.width != maxSide || huge.height != maxSide {
		t.Errorf("%dx%d", huge.width, huge.height)
	}
}

// vt is a terminal as Update takes it to be: it knows no other sequences.
type vt struct {
	*Screen
	x, y        int
	style       style
	top, bottom int
}

var sequence = regexp.MustCompile(`^\x1b\[([0-9;]*)([HmKr])`)

func (v *vt) feed(t *testing.T, data []byte) {
	t.Helper()
	data = bytes.TrimPrefix(data, []byte(setUp))
	for len(data) > 0 {
		m := sequence.FindSubmatch(data)
		if m == nil {
			r, n := utf8.DecodeRune(data)
			if r < ' ' || v.x >= v.width {
				t.Fatalf("%q in row %d, column %d", data[:n], v.y, v.x)
			}
			v.cells[v.y*v.width+v.x] = cell{r, v.style}
			v.x++
			data = data[n:]
			continue
		}
		data = data[len(m[0]):]
		var a, b int
		_, _ = fmt.Sscanf(string(m[1]), "%d;%d", &a, &b)
		switch m[2][0] {
		case 'H':
			v.y, v.x = a-1, b-1
		case 'r':
			v.top, v.bottom = a-1, b-1
			v.x, v.y = 0, 0
		case 'K':
			for x := v.x; x < v.width; x++ {
				v.cells[v.y*v.width+x] = cell{' ', v.style}
			}
		case 'm':
			v.style = 0xff
			for st := plain; st <= rule; st++ {
				if st.sgr() == string(m[1]) {
					v.style = st
				}
			}
			if v.style == 0xff {
				t.Fatalf("style %q", m[1])
			}
		}
	}
}

// A terminal that is sent all updates shows what it should, although the kernel
// writes to it too, and an update is no longer than what changed.
func TestUpdate(t *testing.T) {
	for _, size := range [][2]int{{80, 25}, {160, 50}, {40, 12}, {1, 1}, {300, 100}} {
		width, height := size[0], size[1]
		v := &vt{Screen: newScreen(width, height)}
		for i := range v.cells {
			v.cells[i] = cell{'x', bad}
		}
		var old *Screen
		show := func(s *State, scrolled bool) (sent int) {
			next := Render(s, width, height)
			for _, p := range next.Update(old, scrolled) {
				if len(p) > chunk {
					t.Errorf("a piece of %d bytes", len(p))
				}
				v.feed(t, p)
				sent += len(p)
				if v.x != 0 || v.y != height-1 || v.bottom != height-1 || v.top != next.top() || v.style != plain {
					t.Fatalf("the cursor stays in row %d, column %d; rows %d to %d scroll", v.y, v.x, v.top, v.bottom)
				}
			}
			for i, c := range next.cells {
				if v.cells[i] != c {
					t.Fatalf("%dx%d: row %d, column %d is %q, want %q", width, height, i/width, i%width, v.cells[i].r, c.r)
				}
			}
			old = next
			return sent
		}
		show(ready(), false)
		if n := show(ready(), false); n != 0 {
			t.Errorf("%d bytes for what is as it was", n)
		}
		s := ready()
		s.Uptime += time.Second
		if n := show(s, false); n > 80 {
			t.Errorf("%d bytes for a second", n)
		}
		show(waiting(), false)
		// The kernel scrolls the log, and writes a line.
		copy(v.cells[old.top()*width:], v.cells[(old.top()+1)*width:])
		v.cells[(height-1)*width].r = 'K'
		show(waiting(), true)
		show(crowded(), false)
	}
}

// What PID 1 does every few seconds.
func BenchmarkRender(b *testing.B) {
	s := waiting()
	var old *Screen
	for b.Loop() {
		s.Uptime += 3 * time.Second
		next := Render(s, 160, 50)
		next.Update(old, false)
		old = next
	}
}
