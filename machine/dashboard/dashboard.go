//go:build linux

// Package dashboard shows what a node is and does on a screen that is attached to
// it: a Linux virtual console of any size, 80 columns and 25 rows of a PC's text
// mode included.
//
// Render makes a Screen of a State, and Screen.Update the control sequences
// (ECMA-48, console_codes(4)) that turn one Screen into the next. Terminal is the
// virtual console. What a State holds may come from others, as a host name from
// DHCP: what is not a visible character never gets onto the terminal.
package dashboard

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// A State is what is shown.
type State struct {
	Version  string // of the image
	Hostname string // "" if it has none
	Uptime   time.Duration

	Stage   string // what the node is doing: Starting, Ready, Ending
	Release string // of the kernel
	Slot    string // "" if no boot loader said which
	Disk    string // "" if it has none

	CPUs        int
	CPU         float64 // used, 0 to 1; below 0 is unknown
	MemoryUsed  uint64  // bytes
	MemoryTotal uint64

	Config      string // where the configuration is from, "" if there is none
	Digest      string // of the configuration
	Fingerprint string // of the API's certificate in maintenance mode, otherwise ""
	Port        int    // of the API; 0: it does not listen

	Links     []Link
	Gateways  []string
	Resolvers []netip.Addr
	Services  []Service
	Log       []Entry // oldest first
}

// The stages.
const (
	Starting = "starting"
	Ready    = "ready"
	Ending   = "shutting down"
)

// A Link is a network interface.
type Link struct {
	Name      string
	Carrier   bool
	Addresses []netip.Prefix
}

// A Service is a program that the node keeps running.
type Service struct {
	Name, State, Message string
	Healthy              bool
	Failing              bool // it should be healthy, and is not
}

// An Entry is a line of the log.
type Entry struct {
	Time  time.Duration // since the kernel's start
	Text  string
	Level int // 0 emergency to 7 debug, as the kernel's
}

// Columns of values, and of those at the right of wide enough screens.
const (
	valueColumn = 12
	rightLabel  = 28 // columns that the second ones have
	rightValue  = 8  // from where their labels begin
	rightmost   = 80
	wide        = 76
)

// How many rows the log has at least, on screens that have so many.
const (
	tall     = 20
	minLog   = 5
	shortLog = 3
)

// below is how many rows the links leave to what comes below them.
const below = 5

// maxSide is the largest screen that is drawn on, in columns and rows.
const maxSide = 1000

// A drawing is a Screen while it is drawn from the top.
type drawing struct {
	*Screen
	y    int
	last int // row that details must not go beyond
}

// Render draws the State on a screen of that many columns and rows.
func Render(s *State, width, height int) *Screen {
	d := &drawing{Screen: newScreen(min(max(width, 1), maxSide), min(max(height, 1), maxSide))}
	d.last = d.height - shortLog - 1
	d.bar(s)
	if d.height >= tall {
		d.last = d.height - minLog - 1
		d.y++
	}
	d.state(s)
	d.config(s)
	d.network(s)
	d.services(s)
	if d.height > tall && d.y < d.last {
		d.y++
	}
	d.entries(s.Log)
	return d.Screen
}

// bar is the top line.
func (d *drawing) bar(s *State) {
	for x := range d.width {
		d.cells[x] = cell{' ', bar}
	}
	name := s.Hostname
	if name == "" {
		name = "(no host name)"
	}
	up := "up " + uptime(s.Uptime)
	x := d.put(1, 0, d.width, bar, name)
	if at := d.width - len(up) - 1; at > x+1 {
		d.put(at, 0, d.width, bar, up)
		version := "kiln " + s.Version
		if at := (d.width - len(version)) / 2; at > x+1 && at+len(version) < d.width-len(up)-2 {
			d.put(at, 0, d.width, bar, version)
		}
	}
	d.y = 1
}

// uptime is as exact as people want it.
func uptime(t time.Duration) string {
	t = t.Truncate(time.Second)
	days := int(t / (24 * time.Hour))
	t -= time.Duration(days) * 24 * time.Hour
	clock := fmt.Sprintf("%d:%02d:%02d", int(t.Hours()), int(t.Minutes())%60, int(t.Seconds())%60)
	if days == 0 {
		return clock
	}
	return count(days, "day", "days") + " " + clock
}

// row begins a row with its label and returns the column of its value. There is
// none if no row is left.
func (d *drawing) row(name string) (x int, ok bool) {
	if d.y >= d.height || d.y >= d.last && d.y > 3 {
		return 0, false
	}
	d.put(1, d.y, valueColumn, label, name)
	d.y++
	return valueColumn, true
}

// value is a row with one value.
func (d *drawing) value(name string, st style, text string) {
	if x, ok := d.row(name); ok {
		d.put(x, d.y-1, d.width, st, text)
	}
}

// pair is a row with a second value at its right, if the screen is wide enough.
func (d *drawing) pair(name string, st style, text, rightName, right string) {
	x, ok := d.row(name)
	if !ok {
		return
	}
	end := d.width
	if d.width >= wide && right != "" {
		at := min(d.width-rightLabel, rightmost)
		end = at - 2
		d.put(at, d.y-1, at+rightValue-1, label, rightName)
		d.put(at+rightValue, d.y-1, d.width, plain, right)
	}
	d.put(x, d.y-1, end, st, text)
}

func (d *drawing) state(s *State) {
	text, st := s.Stage, good
	switch {
	case s.Stage != Ready:
		st = warning
	case s.Fingerprint != "":
		text, st = "maintenance: waits for a configuration", warning
	default:
		failing := 0
		for _, v := range s.Services {
			if v.Failing {
				failing++
			}
		}
		if failing > 0 {
			text, st = "ready, "+count(failing, "service fails", "services fail"), bad
		}
	}
	cpu := ""
	if s.CPU >= 0 && s.CPUs > 0 {
		cpu = fmt.Sprintf("%d%% of %d", int(100*s.CPU+0.5), s.CPUs)
	}
	d.pair("State", st, text, "CPU", cpu)
	memory := ""
	if s.MemoryTotal > 0 {
		memory = fmt.Sprintf("%d of %d MiB", s.MemoryUsed>>20, s.MemoryTotal>>20)
	}
	where := "from memory, no disk"
	if s.Disk != "" {
		where = strings.TrimPrefix(s.Disk, "/dev/")
		if s.Slot != "" {
			where = "slot " + s.Slot + " on " + where
		}
	}
	d.pair("System", plain, where, "Memory", memory)
	d.value("Kernel", plain, s.Release)
}

func (d *drawing) config(s *State) {
	if s.Config == "" {
		d.value("Config", warning, "none")
	} else {
		d.value("Config", plain, strings.TrimSpace(s.Config+"  "+s.Digest))
	}
	switch {
	case s.Fingerprint != "":
		d.value("API", plain, s.Fingerprint)
	case s.Port != 0:
		d.value("API", plain, "mutual TLS on port "+strconv.Itoa(s.Port))
	default:
		d.value("API", plain, "-")
	}
}

func (d *drawing) network(s *State) {
	name := "Addresses"
	for i, l := range s.Links {
		if rest := len(s.Links) - i; i > 0 && rest > 1 && d.y > d.last-below {
			d.value(name, plain, "and "+strconv.Itoa(rest)+" more links")
			break
		}
		x, ok := d.row(name)
		if !ok {
			break
		}
		name = ""
		x = d.put(x, d.y-1, d.width, plain, l.Name+" ")
		switch {
		case !l.Carrier:
			d.put(x, d.y-1, d.width, warning, " no carrier")
		case len(l.Addresses) == 0:
			d.put(x, d.y-1, d.width, warning, " no address yet")
		}
		for _, a := range l.Addresses {
			x = d.put(x, d.y-1, d.width, plain, " "+a.String())
		}
	}
	if len(s.Links) == 0 {
		d.value(name, warning, "no network card")
	}
	var resolvers []string
	for _, r := range s.Resolvers {
		resolvers = append(resolvers, r.String())
	}
	d.pairOrRows("Gateway", strings.Join(s.Gateways, ", "), "DNS", strings.Join(resolvers, ", "))
}

// pairOrRows is one row for two values if both fit.
func (d *drawing) pairOrRows(name, text, other, otherText string) {
	const gap = 2
	x, ok := d.row(name)
	if !ok {
		return
	}
	x = d.put(x, d.y-1, d.width, plain, orNone(text))
	x = max(x+gap, min(d.width/2, rightmost))
	if len(other)+1+len(otherText) <= d.rest(x) {
		x = d.put(x, d.y-1, d.width, label, other) + 1
		d.put(x, d.y-1, d.width, plain, orNone(otherText))
		return
	}
	d.value(other, plain, orNone(otherText))
}

func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (d *drawing) services(s *State) {
	if len(s.Services) == 0 {
		return
	}
	x, ok := d.row("Services")
	if !ok {
		return
	}
	for i, v := range s.Services {
		text := v.Name + " " + v.State
		st := plain
		switch {
		case v.Healthy:
			st = good
		case v.Failing:
			st = bad
			if v.Message != "" {
				text += ": " + v.Message
			}
		}
		if i > 0 && x+len(text)+2 > d.width {
			if x, ok = d.row(""); !ok {
				return
			}
		}
		x = d.put(x, d.y-1, d.width, st, "• ")
		x = d.put(x, d.y-1, d.width, plain, text)
		x = d.put(x, d.y-1, d.width, plain, "  ")
	}
}

// entries are the latest of the log, in what is left of the screen.
func (d *drawing) entries(log []Entry) {
	if d.y >= d.height-1 {
		return
	}
	for x := range d.width {
		d.cells[d.y*d.width+x] = cell{'─', rule}
	}
	d.put(1, d.y, d.width, label, " Log ")
	const keys = " Alt-F1 console, Alt-F2 this screen "
	if d.width >= len(keys)+12 {
		d.put(d.width-len(keys)-1, d.y, d.width, label, keys)
	}
	d.y++
	d.log = d.y
	rows := d.height - d.y
	type piece struct {
		time, text string
		style      style
	}
	var pieces []piece
	const timeColumn = 10
	for i := len(log) - 1; i >= 0 && len(pieces) < rows; i-- {
		e := log[i]
		st := plain
		switch {
		case e.Level <= 3:
			st = bad
		case e.Level == 4:
			st = warning
		}
		lines := wrap(clean(e.Text), max(d.width-timeColumn-1, 1))
		for j := len(lines) - 1; j >= 0; j-- {
			p := piece{text: lines[j], style: st}
			if j == 0 {
				p.time = fmt.Sprintf("%8.2f", e.Time.Seconds())
			}
			pieces = append(pieces, p)
		}
	}
	pieces = pieces[:min(len(pieces), rows)]
	for i, p := range pieces {
		y := d.y + len(pieces) - 1 - i
		d.put(1, y, timeColumn, label, p.time)
		d.put(timeColumn, y, d.width, p.style, p.text)
	}
}

// maxWrapped is how many rows one entry may take.
const maxWrapped = 4

// wrap cuts text into lines of at most width characters, at spaces where there are.
func wrap(text string, width int) []string {
	runes := []rune(strings.TrimSpace(text))
	var lines []string
	for len(runes) > width && len(lines) < maxWrapped-1 {
		at := width
		for i := width; i > width/2; i-- {
			if runes[i] == ' ' {
				at = i
				break
			}
		}
		lines = append(lines, string(runes[:at]))
		for at < len(runes) && runes[at] == ' ' {
			at++
		}
		runes = runes[at:]
	}
	return append(lines, string(runes))
}
