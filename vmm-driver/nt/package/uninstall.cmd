@echo off
rem Removes covisor's driver and the folder that install.cmd made. For administrators.
setlocal
set "TO=%ProgramFiles%\covisor"

fsutil dirty query "%SystemDrive%" >nul 2>&1
if errorlevel 1 (
    echo covisor: only an administrator can remove it: right-click uninstall.cmd, "Run as administrator".
    exit /b 1
)

"%TO%\covisor.exe" driver remove
if errorlevel 1 exit /b 1

rem This file may be in that folder, and is read line by line: the last line goes on without it.
cd /d "%SystemDrive%\"
(rmdir /s /q "%TO%" && echo covisor is removed.) & exit /b
