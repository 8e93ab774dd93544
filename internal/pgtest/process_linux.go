package pgtest

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"syscall"
)

func ownSession() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

// endWithParent has the kernel send the signal when the thread that starts the
// process ends.
func endWithParent(attr *syscall.SysProcAttr, sig syscall.Signal) { attr.Pdeathsig = sig }

func childrenOf(pid int) ([]int, error) {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var children []int
	for _, proc := range procs {
		child, err := strconv.Atoi(proc.Name())
		if err != nil {
			continue
		}
		if _, parent := status(child); parent == pid {
			children = append(children, child)
		}
	}
	return children, nil
}

// isGone counts a zombie as gone: in a container, no one may wait for orphans.
func isGone(pid int) bool {
	state, _ := status(pid)
	return state == 0 || state == 'Z' || state == 'X'
}

// status returns the state and the parent of a process, or 0 for one that does
// not exist (proc(5), /proc/pid/stat).
func status(pid int) (state byte, parent int) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0
	}
	// The program's name, in parentheses, may hold anything.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 2 {
		return 0, 0
	}
	parent, _ = strconv.Atoi(string(fields[1]))
	return fields[0][0], parent
}
