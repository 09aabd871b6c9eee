package timesync

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// made is when the image of the tests was made.
var made = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// truth is the right time: the bubble's clock begins in 2000.
func truth() time.Time {
	return time.Now().Add(made.AddDate(0, 6, 0).Sub(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC))).Round(0)
}

// fakeClock is wrong by some time.
type fakeClock struct {
	mu     sync.Mutex
	wrong  time.Duration
	log    []string
	broken error
}

func (c *fakeClock) Now() time.Time { return truth().Add(c.error()) }

// error returns by how much the clock is wrong.
func (c *fakeClock) error() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wrong
}

// drift makes it more wrong.
func (c *fakeClock) drift(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrong += d
}

func (c *fakeClock) Step(offset time.Duration) error {
	c.log = append(c.log, fmt.Sprintf("step %v", offset.Round(time.Millisecond)))
	if c.broken != nil {
		return c.broken
	}
	c.drift(offset)
	return nil
}

func (c *fakeClock) Slew(offset, poll, _ time.Duration) error {
	c.log = append(c.log, fmt.Sprintf("slew %v %v", offset.Round(time.Millisecond), poll))
	c.drift(offset)
	return nil
}

func (c *fakeClock) Save() error {
	c.log = append(c.log, "save")
	return c.broken
}

// A fakeServer answers with packets.
type fakeServer struct {
	wrong  time.Duration
	delay  time.Duration
	asked  atomic.Int32
	change func(reply []byte) []byte // nil: nothing
}

func stamp(t time.Time) []byte {
	seconds := uint64(t.Unix() + 2208988800)
	return binary.BigEndian.AppendUint64(nil, seconds<<32|uint64(t.Nanosecond())<<32/uint64(time.Second))
}

// answer is RFC 5905, figure 8, as a server at stratum 2 fills it.
func (f *fakeServer) answer(request []byte) []byte {
	now := stamp(truth().Add(f.wrong))
	b := make([]byte, packetSize)
	copy(b, []byte{0x24, 2, 6, 0xec, 0, 0, 0, 0x42, 0, 0, 0, 0x83, 10, 0, 0, 1})
	copy(b[16:], now)
	copy(b[24:], request[40:48])
	copy(b[32:], now)
	copy(b[40:], now)
	if f.change != nil {
		return f.change(b)
	}
	return b
}

// dial returns what finds servers by their names.
func dial(servers map[string]*fakeServer) func(context.Context, string, string) (net.Conn, error) {
	return func(_ context.Context, network, address string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(address)
		if err != nil || network != "udp" || port != "123" {
			return nil, fmt.Errorf("dial %s %s", network, address)
		}
		s := servers[host]
		if s == nil {
			return nil, fmt.Errorf("lookup %s: no such host", host)
		}
		here, there := net.Pipe()
		go func() {
			defer there.Close()
			request := make([]byte, packetSize)
			if n, err := there.Read(request); err != nil || n != packetSize || request[0] != 0x23 {
				return
			}
			s.asked.Add(1)
			time.Sleep(s.delay / 2)
			reply := s.answer(request)
			time.Sleep(s.delay / 2)
			for len(reply) > 0 {
				n := min(len(reply), packetSize)
				if _, err := there.Write(reply[:n]); err != nil {
					return
				}
				reply = reply[n:]
			}
			_, _ = there.Read(request) // until the client closes
		}()
		return here, nil
	}
}

// run runs a Syncer for some time.
func run(t *testing.T, d time.Duration, c *fakeClock, servers map[string]*fakeServer, names ...string) *Syncer {
	t.Helper()
	s := New(Config{Clock: c, Earliest: made, Dial: dial(servers)})
	s.SetServers(names)
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	s.Run(ctx)
	return s
}

func TestSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fakeClock{}
		c.wrong = time.Unix(0, 0).Sub(truth()) // 1970
		f := &fakeServer{delay: 20 * time.Millisecond}
		var reports []Status
		s := New(Config{Clock: c, Earliest: made, Dial: dial(map[string]*fakeServer{"a": f}), Report: func(st Status) { reports = append(reports, st) }})
		s.SetServers([]string{"a"})
		go func() {
			<-s.Synced()
			if wrong := c.error().Abs(); wrong > time.Millisecond {
				t.Errorf("synced, and wrong by %v", wrong)
			}
			c.drift(30 * time.Millisecond)
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Hour)
		defer cancel()
		s.Run(ctx)
		days := made.Sub(time.Unix(0, 0))
		want := []string{fmt.Sprintf("step %v", days), fmt.Sprintf("step %v", made.AddDate(0, 6, 0).Sub(made)+10*time.Millisecond-10*time.Millisecond), "save",
			"slew -30ms 1m4s", "slew 0s 2m8s", "slew 0s 4m16s", "slew 0s 8m32s", "slew 0s 17m4s"}
		if len(c.log) < len(want) || !reflect.DeepEqual(c.log[:len(want)], want) {
			t.Errorf("got %q\nwant %q", c.log, want)
		}
		if n := strings.Count(strings.Join(c.log, " "), "save"); n != 2 {
			t.Errorf("the battery's clock was set %d times in two hours", n)
		}
		if last := s.Status(); !last.Synced || last.Server != "a" || last.Stratum != 2 || last.Delay != 20*time.Millisecond || last.Poll != maxPoll || last.Faults != nil {
			t.Errorf("%+v", last)
		}
		if len(reports) < 3 || reports[0].Synced {
			t.Errorf("%+v", reports)
		}
	})
}

// One of three lies, one is far away.
func TestMajority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fakeClock{wrong: time.Hour}
		s := run(t, time.Second, c, map[string]*fakeServer{
			"liar": {wrong: 48 * time.Hour, delay: time.Millisecond},
			"far":  {delay: 400 * time.Millisecond},
			"near": {delay: 4 * time.Millisecond},
		}, "liar", "far", "near", "gone")
		st := s.Status()
		if st.Server != "near" || c.error().Abs() > time.Millisecond {
			t.Errorf("%+v, wrong by %v", st, c.error())
		}
		if len(st.Faults) != 1 || st.Faults[0] != "time server gone: lookup gone: no such host" {
			t.Errorf("faults %q", st.Faults)
		}
	})
}

func TestDisagreement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fakeClock{}
		s := run(t, time.Second, c, map[string]*fakeServer{"a": {}, "b": {wrong: time.Hour}}, "a", "b")
		want := "the time servers disagree (a: 2026-07-01T00:00:00Z, b: 2026-07-01T01:00:00Z); configure one more, or take out the one that is wrong"
		if st := s.Status(); st.Synced || len(st.Faults) != 1 || st.Faults[0] != want || len(c.log) != 0 {
			t.Errorf("%+v, %q", st, c.log)
		}
	})
}

func TestFaults(t *testing.T) {
	set := func(at int, b ...byte) func([]byte) []byte {
		return func(reply []byte) []byte {
			copy(reply[at:], b)
			return reply
		}
	}
	for _, c := range []struct {
		name   string
		server *fakeServer
		fault  string
		asked  int // in 90 s
	}{
		{"silent", &fakeServer{change: func([]byte) []byte { return nil }}, "no answer for 3s", 6},
		{"garbage", &fakeServer{change: func([]byte) []byte { return bytes.Repeat([]byte{0xff}, 4000) }}, "no answer for 3s", 6},
		{"not to us", &fakeServer{change: set(24, 1, 2, 3, 4, 5, 6, 7, 8)}, "no answer for 3s", 6},
		{"not synchronized", &fakeServer{change: set(0, 0xe4)}, "the server is not synchronized itself", 6},
		{"stratum 16", &fakeServer{change: set(1, 16)}, "the server is not synchronized itself", 6},
		{"deny", &fakeServer{change: set(0, 0x24, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 'D', 'E', 'N', 'Y')}, "the server does not want us to ask (DENY); configure another", 1},
		{"rate", &fakeServer{change: set(0, 0x24, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 'R', 'A', 'T', 'E')}, "the server wants us to ask less often (RATE)", 1},
		{"other kiss", &fakeServer{change: set(0, 0x24, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 'I', 'N', 0x1b, 'T')}, "the server has no time for us (INT)", 6},
		{"dispersion", &fakeServer{change: set(8, 0, 2, 0, 0)}, "its time may be wrong by 2.001s, more than 1.5s", 6},
		{"1990", &fakeServer{wrong: -36 * 365 * 24 * time.Hour}, "its time cannot be: it says 1990-07-10 00:", 6},
		{"backwards", &fakeServer{change: func(b []byte) []byte { b[35]++; return b }}, "its time cannot be: it sent the answer before it had the question", 6},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				clock := &fakeClock{}
				s := run(t, 90*time.Second, clock, map[string]*fakeServer{"a": c.server}, "a")
				st := s.Status()
				if st.Synced || len(clock.log) != 0 || len(st.Faults) != 1 || !strings.HasPrefix(st.Faults[0], "time server a: "+c.fault) {
					t.Errorf("%q, %q", st.Faults, clock.log)
				}
				if n := int(c.server.asked.Load()); n < c.asked || n > c.asked+1 {
					t.Errorf("asked %d times, want %d", n, c.asked)
				}
			})
		})
	}
}

// Noise before the answer does no harm.
func TestNoise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fakeClock{wrong: time.Minute}
		f := &fakeServer{change: func(b []byte) []byte { return append(make([]byte, 3*packetSize), b...) }}
		if s := run(t, time.Second, c, map[string]*fakeServer{"a": f}, "a"); !s.Status().Synced || c.error().Abs() > time.Millisecond {
			t.Errorf("%+v, wrong by %v", s.Status(), c.error())
		}
	})
}

// Somebody sets the clock: it is stepped back, after a second look.
func TestSetByOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fakeClock{}
		time.AfterFunc(30*time.Second, func() { c.drift(time.Hour) })
		s := run(t, 4*time.Minute, c, map[string]*fakeServer{"a": {}}, "a")
		want := "step 0s, save, slew 0s 2m8s, step -1h0m0s, slew 0s 2m8s"
		if got := strings.Join(c.log, ", "); got != want || s.Status().Stepped.Round(time.Second) != -time.Hour {
			t.Errorf("got %s", got)
		}
	})
}

// A change of servers asks at once, and forgives.
func TestSetServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fakeClock{wrong: time.Minute}
		s := New(Config{Clock: c, Earliest: made, Dial: dial(map[string]*fakeServer{"b": {}})})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		go func() {
			time.Sleep(time.Minute)
			if f := s.Status().Faults; len(f) != 1 || f[0] != "there is no time server; configure one, or have DHCP name one" {
				t.Errorf("faults %q", f)
			}
			s.SetServers([]string{"b"})
			before := time.Now()
			<-s.Synced()
			if d := time.Since(before); d > time.Second {
				t.Errorf("synced after %v", d)
			}
			cancel()
		}()
		s.Run(ctx)
	})
}

func TestBrokenClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &fakeClock{wrong: time.Minute, broken: errors.New("operation not permitted")}
		s := run(t, time.Minute, c, map[string]*fakeServer{"a": {}}, "a")
		if st := s.Status(); st.Synced || len(st.Faults) != 1 || st.Faults[0] != "the clock cannot be set: operation not permitted" {
			t.Errorf("%+v", st)
		}
	})
}

func TestTimestamp(t *testing.T) {
	for in, want := range map[uint64]time.Time{
		0x83aa7e80_00000000: time.Unix(0, 0),
		0xffffffff_80000000: time.Date(2036, 2, 7, 6, 28, 15, 5e8, time.UTC),
		0x00000000_00000000: time.Date(2036, 2, 7, 6, 28, 16, 0, time.UTC),
		0xed1ecb00_40000000: time.Date(2026, 1, 24, 4, 37, 20, 25e7, time.UTC),
	} {
		if got := fromTimestamp(in); !got.Equal(want) {
			t.Errorf("%x: %v, want %v", in, got, want)
		}
	}
}

func TestRequest(t *testing.T) {
	want := "23" + strings.Repeat("00", 39) + "0102030405060708"
	if got := hex.EncodeToString(request(0x0102030405060708)); got != want {
		t.Errorf("got %s", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add((&fakeServer{}).answer(request(1)))
	c := Config{Earliest: made, Clock: &fakeClock{}}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parse(data)
		if err != nil || r.check() != nil {
			return
		}
		s, err := c.sample("a", r, made, time.Second)
		if err == nil && (s.time.Before(made) || s.distance < 0 || s.distance > maxDistance || s.delay < 0) {
			t.Errorf("%+v", s)
		}
	})
}
