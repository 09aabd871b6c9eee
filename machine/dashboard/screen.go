//go:build linux

package dashboard

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A style is how a character looks: a parameter of SGR, "set graphic rendition".
type style uint8

const (
	plain style = iota
	label
	good
	warning
	bad
	bar // of the top line
	rule
)

// sgr is the parameters of each style, for the sixteen colours of Linux's console.
func (s style) sgr() string {
	return [...]string{plain: "0", label: "0;36", good: "0;1;32", warning: "0;1;33", bad: "0;1;31", bar: "0;1;37;44", rule: "1;30"}[s]
}

// A cell is a character on a Screen.
type cell struct {
	r     rune
	style style
}

// A Screen is what a terminal shows.
type Screen struct {
	width, height int
	cells         []cell // row by row
	log           int    // row at which the log begins, height if there is none
}

func newScreen(width, height int) *Screen {
	s := &Screen{width: width, height: height, cells: make([]cell, width*height), log: height}
	for i := range s.cells {
		s.cells[i].r = ' '
	}
	return s
}

// String returns the characters without their looks, a line for each row.
func (s *Screen) String() string {
	var b strings.Builder
	for y := range s.height {
		var row strings.Builder
		for _, c := range s.cells[y*s.width : (y+1)*s.width] {
			row.WriteRune(c.r)
		}
		b.WriteString(strings.TrimRight(row.String(), " ") + "\n")
	}
	return b.String()
}

// put writes text into a row from column x up to, not including, column end, and
// returns the column after it. Text that does not fit ends in a mark.
func (s *Screen) put(x, y, end int, st style, text string) int {
	if y < 0 || y >= s.height {
		return x
	}
	end = min(end, s.width)
	runes := []rune(clean(text))
	for i, r := range runes {
		if x >= end {
			break
		}
		if x == end-1 && i < len(runes)-1 {
			r = '»'
		}
		s.cells[y*s.width+x] = cell{r, st}
		x++
	}
	return x
}

// clean replaces everything in text that is not one character wide in the fonts of
// all consoles: nothing that other machines say may move the cursor, or hide.
func clean(text string) string {
	var b strings.Builder
	for _, r := range text {
		switch {
		case r == '\t' || r == '\n' || r == '\r':
			r = ' '
		case r >= ' ' && r < 0x7f || r > 0xa0 && r <= 0xff && r != 0xad:
		case r == '─' || r == '•':
		case r == '…':
			b.WriteString("..")
			r = '.'
		case r == '‘' || r == '’':
			r = '\''
		case r == '“' || r == '”':
			r = '"'
		case r == '–' || r == '—':
			r = '-'
		default:
			r = '?'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// chunk is what a terminal is given at a time, in bytes. The kernel takes a write of
// 2048 at once: none of its messages comes in between.
const chunk = 2048

// Update returns what a terminal that shows old is to be sent to show s, in pieces
// to be written at once; all of s if old is nil or of another size. The cursor stays
// in the last row, and only the log scrolls: there, and nowhere else, appears what
// the kernel itself writes to the terminal. If it has written anything, scrolled says
// so, and the log is drawn anew.
func (s *Screen) Update(old *Screen, scrolled bool) [][]byte {
	var pieces [][]byte
	park := s.park()
	piece := append([]byte(nil), park...)
	if old == nil || old.width != s.width || old.height != s.height {
		old = nil
		piece = append([]byte(setUp), park...)
	}
	empty := len(piece)
	add := func(part []byte) {
		if len(piece)+len(part)+len(park) > chunk && len(piece) > empty {
			pieces = append(pieces, append(piece, park...))
			piece, empty = nil, 0
		}
		piece = append(piece, part...)
	}
	for y := range s.height {
		row := s.cells[y*s.width : (y+1)*s.width]
		from, to := 0, s.width
		if old != nil && !(scrolled && y >= s.top()) {
			was := old.cells[y*s.width : (y+1)*s.width]
			for from < to && row[from] == was[from] {
				from++
			}
			for to > from && row[to-1] == was[to-1] {
				to--
			}
		}
		if from < to {
			add(s.run(y, from, to))
		}
	}
	if len(piece) > empty {
		pieces = append(pieces, append(piece, park...))
	}
	return pieces
}

// setUp is what a terminal needs at first: UTF-8, no cursor, no wrapping at the end
// of a line. Nothing is erased, which would flicker: everything is drawn over.
const setUp = "\x1b%G\x1b[?25l\x1b[?7l"

// park makes the rows of the log those that scroll, and moves the cursor to the last.
func (s *Screen) park() []byte {
	return fmt.Appendf(nil, "\x1b[0m\x1b[%d;%dr\x1b[%d;1H", s.top()+1, s.height, s.height)
}

// top is the first row that scrolls. One row alone cannot.
func (s *Screen) top() int {
	if s.log < s.height-1 {
		return s.log
	}
	return 0
}

// run draws a part of a row.
func (s *Screen) run(y, from, to int) []byte {
	b := fmt.Appendf(nil, "\x1b[%d;%dH", y+1, from+1)
	row := s.cells[y*s.width+from : y*s.width+to]
	// What is blank up to the end is erased instead.
	blank := 0
	for to == s.width && blank < len(row) && row[len(row)-1-blank] == (cell{r: ' '}) {
		blank++
	}
	var last style = 0xff
	for _, c := range row[:len(row)-blank] {
		if c.style != last {
			b = append(b, "\x1b["+c.style.sgr()+"m"...)
			last = c.style
		}
		b = utf8.AppendRune(b, c.r)
	}
	if blank > 0 {
		b = append(b, "\x1b[0m\x1b[K"...)
	}
	return b
}

// rest is how many columns there are from column x on.
func (s *Screen) rest(x int) int { return max(0, s.width-x) }

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}
