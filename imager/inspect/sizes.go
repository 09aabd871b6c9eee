package inspect

import (
	"encoding/xml"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/kilnhq/kiln/internal/progress"
)

// Node is a part of an image and how many bytes of it it takes.
type Node struct {
	Name     string  `json:"name"`
	Bytes    int64   `json:"bytes"`
	Children []*Node `json:"children,omitempty"` // largest first
}

// Sizes says where the bytes of an image go: partitions, the files in them, the
// sections of UKIs, the archives of an initramfs and the directories in layers.
// What is in a compressed layer counts for its share of the layer's bytes.
func Sizes(img *Image, files []File) *Node {
	root := &Node{Name: "disk", Bytes: img.Size}
	layers := map[string][]File{}
	for _, f := range files {
		layers[f.Where] = append(layers[f.Where], f)
	}
	rest := img.Size
	for _, p := range img.Partitions {
		part := &Node{Name: p.Label, Bytes: p.Size}
		for _, f := range layers[p.Label] {
			if f.Mode.IsRegular() {
				part.add(strings.Split(strings.TrimPrefix(f.Path, "/"), "/"), f.Size)
			}
		}
		part.expand(layers)
		part.settle("free")
		root.Children = append(root.Children, part)
		rest -= p.Size
	}
	root.Children = append(root.Children, &Node{Name: "partition tables", Bytes: rest})
	root.sort()
	return root
}

// child returns the child of a name, which it makes if need be.
func (n *Node) child(name string) *Node {
	for _, c := range n.Children {
		if c.Name == name {
			return c
		}
	}
	c := &Node{Name: name}
	n.Children = append(n.Children, c)
	return c
}

// add adds a file. A file that is a directory of what is in it has its own size.
func (n *Node) add(path []string, size int64) {
	for _, name := range path {
		n = n.child(name)
	}
	n.Bytes = size
}

// layerFile is the path that compose gives the layer NUMBER-NAME in the initramfs.
func layerFile(name string) (layer string, ok bool) {
	base, ok := strings.CutSuffix(name, ".sqsh")
	_, layer, found := strings.Cut(base, "-")
	return layer, ok && found
}

// expand puts below each layer's file what is in the layer.
func (n *Node) expand(layers map[string][]File) {
	for _, c := range n.Children {
		c.expand(layers)
	}
	layer, ok := layerFile(n.Name)
	if !ok || len(layers[layer]) == 0 {
		return
	}
	var total int64
	for _, f := range layers[layer] {
		total += f.Size
	}
	for _, f := range layers[layer] {
		if f.Size > 0 {
			share := int64(float64(f.Size) / float64(total) * float64(n.Bytes))
			dir := n
			for _, name := range strings.Split(strings.TrimPrefix(f.Path, "/"), "/") {
				dir = dir.child(name)
			}
			dir.Bytes += share
		}
	}
}

// settle makes directories as large as what is in them, and gives what is larger
// than that, such as a partition, one more child with the rest.
func (n *Node) settle(rest string) int64 {
	var sum int64
	for _, c := range n.Children {
		sum += c.settle("other")
	}
	switch {
	case n.Bytes == 0:
		n.Bytes = sum
	case sum > n.Bytes:
		n.shrink(sum - n.Bytes)
	case len(n.Children) > 0 && n.Bytes > sum:
		n.Children = append(n.Children, &Node{Name: rest, Bytes: n.Bytes - sum})
	}
	return n.Bytes
}

// shrink takes bytes from the children that an archive holds compressed, of which
// only the size before is known: all but the layers.
func (n *Node) shrink(excess int64) {
	var from int64
	for _, c := range n.Children {
		if c.Name != "layers" {
			from += c.Bytes
		}
	}
	for _, c := range n.Children {
		if c.Name != "layers" && from > 0 {
			c.Bytes = max(0, c.Bytes-int64(float64(excess)*float64(c.Bytes)/float64(from)))
		}
	}
}

func (n *Node) sort() {
	slices.SortStableFunc(n.Children, func(a, b *Node) int { return int(min(max(b.Bytes-a.Bytes, -1), 1)) })
	for _, c := range n.Children {
		c.sort()
	}
}

// What is too small to be seen is summed up.
const (
	textShare  = 0.005
	textDepth  = 7
	barWidth   = 20
	svgWidth   = 1200
	svgHeight  = 800
	svgSmall   = 3.0 // pixels
	svgCaption = 14
)

// WriteText prints the tree, down to what takes half a percent of the image.
func (n *Node) WriteText(w io.Writer) error { return n.text(w, n.Bytes, "", 0) }

func (n *Node) text(w io.Writer, total int64, indent string, depth int) error {
	share := float64(n.Bytes) / float64(max(total, 1))
	bar := strings.Repeat("#", int(share*barWidth+0.5))
	if _, err := fmt.Fprintf(w, "%-*s %5.1f%% %10s  %s%s\n", barWidth, bar, share*100, progress.Bytes(n.Bytes), indent, n.Name); err != nil {
		return err
	}
	if depth == textDepth {
		return nil
	}
	var small int64
	count := 0
	for _, c := range n.Children {
		if float64(c.Bytes) < textShare*float64(total) {
			small += c.Bytes
			count++
			continue
		}
		if err := c.text(w, total, indent+"  ", depth+1); err != nil {
			return err
		}
	}
	if float64(small) < textShare*float64(total) {
		return nil
	}
	return (&Node{Name: fmt.Sprintf("%d more", count), Bytes: small}).text(w, total, indent+"  ", textDepth)
}

// WriteSVG draws the tree as a treemap: every part is a rectangle of its share of
// the area of what it is in.
func (n *Node) WriteSVG(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">`+"\n", svgWidth, svgHeight)
	n.svg(&b, 0, 0, svgWidth, svgHeight, n.Name, 0)
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func (n *Node) svg(b *strings.Builder, x, y, width, height float64, path string, depth int) {
	if width < svgSmall || height < svgSmall {
		return
	}
	colours := []string{"#eceff4", "#d8dee9", "#a3be8c", "#88c0d0", "#ebcb8b", "#d08770", "#b48ead"}
	fmt.Fprintf(b, `<g><title>%s %s</title><rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s" stroke="#4c566a" stroke-width="0.5"/>`,
		escape(path), progress.Bytes(n.Bytes), x, y, width, height, colours[depth%len(colours)])
	caption := 0.0
	if width > float64(7*len(n.Name)) && height > svgCaption {
		caption = svgCaption
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f">%s</text>`, x+3, y+11, escape(n.Name))
	}
	b.WriteString("</g>\n")
	x, y, width, height = x+1, y+1+caption, width-2, height-2-caption
	if n.Bytes <= 0 || width <= 0 || height <= 0 {
		return
	}
	for _, c := range n.Children {
		share := float64(c.Bytes) / float64(n.Bytes)
		if width >= height { // beside each other
			c.svg(b, x, y, width*share, height, path+"/"+c.Name, depth+1)
			x += width * share
		} else {
			c.svg(b, x, y, width, height*share, path+"/"+c.Name, depth+1)
			y += height * share
		}
	}
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder takes everything
	return b.String()
}
